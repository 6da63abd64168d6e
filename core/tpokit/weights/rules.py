"""Rules of all plugins for one format, put together."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tpokit.errors import CheckpointError, PluginError, UsageError
from tpokit.interfaces import AddedProduct, BackboneWeightRules, Published, WeightRules
from tpokit.interfaces.weights import Shapes
from tpokit.model import TpoModel
from tpokit.near_misses import did_you_mean, listed
from tpokit.plugins import Plugins
from tpokit.specs import HeadSpec, WeightsSpec
from tpokit.tokens import TaskTokens, TokenTable


@dataclass(frozen=True)
class HeadRules:
    """Rules of one head.

    Attributes:
        plugin: Name of the head.
        rules: Its rules.
        tokens: Task tokens of the head as it is by default.
    """

    plugin: str
    rules: WeightRules
    tokens: TaskTokens


@dataclass(frozen=True)
class FormatRules:
    """Rules of a backbone and of heads for one format.

    Attributes:
        format: Its name.
        plugin: Name of the backbone.
        backbone: Rules of the backbone.
        heads: Rules of the heads of the model, by task.
        left_out: Rules of heads that are in the files and not in the model, by task.
    """

    format: str
    plugin: str
    backbone: BackboneWeightRules
    heads: Mapping[str, HeadRules]
    left_out: Mapping[str, HeadRules]

    def tensors(self, tokens: TokenTable, tokenizer: Any) -> dict[str, Published]:
        """Every tensor of the format by its name; those of heads that are left out are unused.

        Args:
            tokens: Task tokens of the model.
            tokenizer: Of its backbone; it is not changed.

        Raises:
            PluginError: Two plugins claim one tensor.
        """
        found: dict[str, Published] = {}
        owners: dict[str, str] = {}
        for owner, tensor in self._owned(tokens, tokenizer):
            if tensor.name in found:
                raise PluginError(
                    f"format {self.format!r}: the rules of {owners[tensor.name]} and of {owner} "
                    f"both claim {tensor.name}"
                )
            found[tensor.name] = tensor
            owners[tensor.name] = owner
        return found

    def added(self, tokens: TokenTable) -> list[AddedProduct]:
        """Products that are taken into rows of the model."""
        parts = [self.backbone, *(head.rules for head in self.heads.values())]
        return [product for rules in parts for product in rules.added(tokens)]

    def _owned(self, tokens: TokenTable, tokenizer: Any) -> Iterator[tuple[str, Published]]:
        for tensor in self.backbone.tensors(tokens):
            yield f"backbone {self.plugin!r}", tensor
        for head in self.heads.values():
            for tensor in head.rules.tensors(tokens):
                yield f"head {head.plugin!r}", tensor
        if not self.left_out:
            return
        # rules of a head expect its tokens in the table, although no model will have them
        tasks = {task: head.tokens for task, head in self.left_out.items()}
        table = TokenTable.build(tokens.rows, {**tokens.tasks, **tasks}, copy.deepcopy(tokenizer))
        for task, head in self.left_out.items():
            reason = f"the head of {task} was left out"
            for tensor in head.rules.tensors(table):
                left_out = replace(tensor, places=(), unused=reason, optional=True)
                yield f"head {head.plugin!r}", left_out


# ---- for published files ----


def rules_of_files(
    shapes: Shapes, plugins: Plugins, format_name: str | None = None, without: Collection[str] = ()
) -> FormatRules:
    """Find out of which format files are, and the rules of all plugins that have a part in them.

    Args:
        shapes: Of the files.
        plugins: Where rules are looked up.
        format_name: The format, if it is known.
        without: Tasks whose heads shall not be in the model.

    Raises:
        UsageError: No format fits, or several do; or there is no head for a task in ``without``.
        CheckpointError: The files are of a format, but of impossible sizes.
    """
    specs = _specs(plugins)
    if format_name is not None and format_name not in {spec.format for spec in specs}:
        raise UsageError(_unknown_format(format_name, specs))
    fitting = _fitting_backbones(shapes, plugins, specs, format_name)
    known = listed({spec.format for spec in specs if spec.of == "backbone"})
    if not fitting:
        wanted = f"the format {format_name!r}" if format_name else "any format that is known"
        raise UsageError(
            f"the {len(shapes)} tensors are not of {wanted} (known: {known}); the first is "
            f"{next(iter(shapes), 'not there')}"
        )
    if len(fitting) > 1:
        names = " and ".join(spec.format for spec, _ in fitting)
        raise UsageError(f"the files could be of several formats, {names}; say which by --format")
    spec, backbone = fitting[0]
    heads = _heads_in_files(shapes, plugins, specs, spec.format)
    unknown = sorted(set(without) - set(heads))
    if unknown:
        raise UsageError(
            f"--without {unknown[0]}: the files hold no such head"
            f"{did_you_mean(unknown[0], heads)} (they hold: {listed(heads)})"
        )
    return FormatRules(
        format=spec.format,
        plugin=spec.plugin,
        backbone=backbone,
        heads={task: head for task, head in heads.items() if task not in without},
        left_out={task: head for task, head in heads.items() if task in without},
    )


def _fitting_backbones(
    shapes: Shapes, plugins: Plugins, specs: list[WeightsSpec], format_name: str | None
) -> list[tuple[WeightsSpec, BackboneWeightRules]]:
    """Rules of backbones that know these tensors; what one of them finds wrong counts only if no
    other does.
    """
    fitting = []
    wrong: CheckpointError | None = None
    for spec in specs:
        if spec.of != "backbone" or format_name not in {None, spec.format}:
            continue
        try:
            found = _backbone_factory(plugins, spec).from_published(shapes)
        except CheckpointError as cause:
            wrong = wrong or cause
            continue
        if found is not None:
            assert isinstance(found, BackboneWeightRules)
            fitting.append((spec, found))
    if not fitting and wrong is not None:
        raise wrong
    return fitting


def _heads_in_files(
    shapes: Shapes, plugins: Plugins, specs: list[WeightsSpec], format_name: str
) -> dict[str, HeadRules]:
    heads: dict[str, HeadRules] = {}
    for spec in specs:
        if spec.of != "head" or spec.format != format_name:
            continue
        rules = _factory(plugins, spec).from_published(shapes)
        if rules is None:
            continue
        head = plugins.spec("head", spec.plugin)
        assert isinstance(head, HeadSpec)
        if head.task in heads:
            raise UsageError(
                f"heads {heads[head.task].plugin!r} and {spec.plugin!r} both have rules for the "
                f"task {head.task!r} in the format {format_name!r}; block one in a registry file"
            )
        heads[head.task] = HeadRules(spec.plugin, rules, plugins.factory(head).tokens)
    return dict(sorted(heads.items()))


# ---- for a model ----


def rules_of_model(
    model: TpoModel, backbone: str, heads: Mapping[str, str], plugins: Plugins, format_name: str
) -> FormatRules:
    """The rules by which a model goes into a format.

    Args:
        model: Of ours.
        backbone: Name of its backbone.
        heads: Task to name of its head.
        plugins: Where rules are looked up.
        format_name: The format.

    Raises:
        UsageError: There is no such format, or it has no place for the backbone or a head.
    """
    found = spec_of(plugins, format_name, "backbone", backbone)
    rules = _backbone_factory(plugins, found).from_model(model.backbone)
    assert isinstance(rules, BackboneWeightRules)
    heads_found = {}
    for task, name in sorted(heads.items()):
        factory = _factory(plugins, spec_of(plugins, format_name, "head", name))
        head = model.head(task)
        heads_found[task] = HeadRules(name, factory.from_model(head), head.tokens)
    return FormatRules(format_name, backbone, rules, heads_found, {})


def spec_of(plugins: Plugins, format_name: str, kind: str, name: str) -> WeightsSpec:
    """The rules of a backbone or a head for a format.

    Raises:
        UsageError: There are none.
    """
    specs = _specs(plugins)
    for spec in specs:
        if (spec.format, spec.of, spec.plugin) == (format_name, kind, name):
            return spec
    if format_name not in {spec.format for spec in specs}:
        raise UsageError(_unknown_format(format_name, specs))
    known = listed({s.format for s in specs if (s.of, s.plugin) == (kind, name)})
    raise UsageError(
        f"the format {format_name!r} has no place for the {kind} {name!r} (formats that have: "
        f"{known})"
    )


# ---- looking up ----


def _specs(plugins: Plugins) -> list[WeightsSpec]:
    found = [plugins.spec("weights", name) for name in plugins.names("weights")]
    return [spec for spec in found if isinstance(spec, WeightsSpec)]


def _factory(plugins: Plugins, spec: WeightsSpec) -> type[WeightRules]:
    made = plugins.factory(spec)
    assert issubclass(made, WeightRules)
    return made


def _backbone_factory(plugins: Plugins, spec: WeightsSpec) -> type[BackboneWeightRules]:
    made = _factory(plugins, spec)
    if not issubclass(made, BackboneWeightRules):
        raise PluginError(
            f"weights {spec.name!r}: rules of a backbone must be tpokit.BackboneWeightRules"
        )
    return made


def _unknown_format(name: str, specs: list[WeightsSpec]) -> str:
    known = {spec.format for spec in specs}
    return f"no format {name!r}{did_you_mean(name, known)} (known: {listed(known)})"
