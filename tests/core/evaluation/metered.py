"""A metric for the tiny head of points, as a stranger's plugin would bring one."""

import tpokit


class PointError(tpokit.Metric):
    """Mean distance; 1 for a point that was not found."""

    task = "point"

    def __init__(self):
        self.errors = []

    def add(self, predicted, expected, media):
        for place, wanted in enumerate(expected):
            found = predicted[place] if place < len(predicted) else None
            wrong = [abs(a - b) for a, b in zip(found or wanted, wanted, strict=True)]
            self.errors.append(1.0 if found is None else sum(wrong) / 2)

    def scores(self):
        missing = sum(error == 1.0 for error in self.errors) / len(self.errors)
        return {"error": sum(self.errors) / len(self.errors), "missing": missing}


@tpokit.hookimpl
def tpokit_metrics():
    return [tpokit.MetricSpec(name="point_error", task="point", factory=":PointError")]
