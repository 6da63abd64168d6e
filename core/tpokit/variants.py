"""The model of a recipe in two other sizes: empty, to look at, and small, to run on a laptop.

Backbones and heads say themselves how they become these (`tpokit.Backbone.build_empty`,
`build_small`, and the same of `tpokit.TaskHead`).
"""

from __future__ import annotations

from typing import Any, Literal

from tpokit.model import TpoModel, build_model
from tpokit.plugins import Plugins
from tpokit.recipe import Recipe
from tpokit.specs import Spec

Variant = Literal["empty", "small"]


class _Built:
    """Stands for a class of a plugin, and builds its variant."""

    def __init__(self, made: type[Any], variant: Variant) -> None:
        self.build = getattr(made, f"build_{variant}")

    def __call__(self, *arguments: Any) -> Any:
        return self.build(*arguments)


class VariantPlugins(Plugins):
    """The same plugins, whose backbones and heads are built in another size."""

    def __init__(self, plugins: Plugins, variant: Variant) -> None:
        """Take over what plugins offer.

        Args:
            plugins: The real ones.
            variant: ``empty`` or ``small``.
        """
        super().__init__(plugins.offers)
        self._variant: Variant = variant

    def factory(self, spec: Spec) -> Any:
        """See `Plugins.factory`."""
        made = super().factory(spec)
        return _Built(made, self._variant) if spec.kind in ("backbone", "head") else made


def empty_model(recipe: Recipe, plugins: Plugins) -> TpoModel:
    """The model of a recipe at its full size without numbers: its parameters can be counted, its
    processor and heads encode samples, and no file of weights is read.
    """
    return build_model(recipe, VariantPlugins(plugins, "empty"))
