"""The readable twin of the optimizer: NumPy, float64, one array at a time, no shortcuts (method §2 to §4).

It shares no code with the package. `loss_and_gradient(u)` is given; everything else is here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np


# ---------------------------------------------------------------- maximizers, §3
def l0(z, d, epsilon, rho):
    return [np.where(epsilon * di * zi**2 > rho, zi, 0.0) for zi, di in zip(z, d, strict=True)]


def l1(z, d, epsilon, rho):
    return [np.sign(zi) * np.maximum(np.abs(zi) - rho / (2 * epsilon * di), 0.0) for zi, di in zip(z, d, strict=True)]


def l2(z, d, epsilon, rho):
    return [epsilon * di * zi / (epsilon * di + rho) for zi, di in zip(z, d, strict=True)]


def largest(z, d, count, low=-math.inf, high=math.inf, minimum=0):
    """Keeps the `count` clipped c with the largest d z² − d (z − c)² over all arrays; ties go to the first.

    The `minimum` largest of each array are taken first.
    """
    clipped = [np.clip(zi, low, high) for zi in z]
    scores = [(di * zi**2 - di * (zi - ci) ** 2).ravel() for zi, di, ci in zip(z, d, clipped, strict=True)]
    places = [rank < minimum for s in scores for rank in ranks(s)]
    scores = np.concatenate(scores)
    order = sorted(range(len(scores)), key=lambda i: (not places[i], -scores[i], i))
    keep = np.zeros(len(scores), bool)
    keep[order[:count]] = True
    out, start = [], 0
    for ci in clipped:
        out.append(np.where(keep[start : start + ci.size].reshape(ci.shape), ci, 0.0))
        start += ci.size
    return out


def ranks(scores):
    """For every score the number of those that come before it when the largest come first."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return [order.index(i) for i in range(len(scores))]


def of_each_row(z, d, count):
    """Keeps the `count` largest d z² of every slice along dim 0."""
    out = [np.zeros_like(zi) for zi in z]
    for new, zi, di in zip(out, z, d, strict=True):
        for r in range(len(zi)):
            (new[r],) = largest([zi[r]], [di[r]], count(zi[r].size))
    return out


def n_of_m(z, d, n, m, needed):
    """In the `needed` groups of m channels that lose least, only the n largest d z² stay."""
    groups = []
    for t, zi in enumerate(z):
        for place in np.ndindex(*(s for i, s in enumerate(zi.shape) if i != 1)):
            for start in range(0, zi.shape[1], m):
                at = (t, place[0], slice(start, start + m), *place[1:])
                score = d[t][at[1:]] * zi[at[1:]] ** 2
                lost = sorted(range(len(score)), key=lambda i: (-score[i], i))[n:]
                groups.append((score[lost].sum(), at, lost))
    # The first of equal ones are free, so the last are thinned.
    order = sorted(range(len(groups)), key=lambda i: (groups[i][0], -i))
    out = [zi.copy() for zi in z]
    for i in order[:needed]:
        _, at, lost = groups[i]
        out[at[0]][at[1:]][lost] = 0.0
    return out


def within_budget(z, d, costs, budget, minimum):
    """First the `minimum` largest of each array, then whatever has the largest d z² per cost, until one is too dear."""
    items = []
    for t, (zi, di) in enumerate(zip(z, d, strict=True)):
        score = (di * zi**2).ravel()
        for i, rank in enumerate(ranks(score)):
            items.append((rank >= minimum, -score[i] / costs[t], t, i))
    out, spent = [np.zeros_like(zi) for zi in z], 0
    for optional, _, t, i in sorted(items):
        if optional and spent + costs[t] > budget:
            break
        spent += costs[t]
        out[t].flat[i] = z[t].flat[i]
    return out


def elastic(z, d, epsilon, rho):
    shrunk = l1(z, d, epsilon, rho[0])
    return [epsilon * di * si / (epsilon * di + rho[1]) for si, di in zip(shrunk, d, strict=True)]


def fractional(z, d, epsilon, rho, p):
    """No closed form: Newton from |z| down to the larger stationary point, which is then compared with 0."""
    out = []
    for zi, di in zip(z, d, strict=True):
        a, weight = np.abs(zi), epsilon * di
        u = a + 1e-100
        for _ in range(60):
            g = u - a + rho * p / (2 * weight) * u ** (p - 1)
            slope = 1 + rho * p * (p - 1) / (2 * weight) * u ** (p - 2)
            u = np.where(slope > 0, np.maximum(u - g / slope, 1e-12 * a + 1e-100), u)
        better = rho * u**p + weight * (u - a) ** 2 < weight * a**2
        out.append(np.where(better, np.sign(zi) * u, 0.0))
    return out


def group_l0(z, d, epsilon, rho, dim, by_size):
    out = []
    for zi, di in zip(z, d, strict=True):
        new = np.zeros_like(zi)
        for g in range(zi.shape[dim]):
            place = (slice(None),) * dim + (g,)
            group, metric = zi[place], np.broadcast_to(di, zi.shape)[place]
            if (epsilon * metric * group**2).sum() > rho * (group.size if by_size else 1):
                new[place] = group
        out.append(new)
    return out


def nearest(z, levels):
    """The nearest level; of two the one nearer to 0, and of -a and a the latter."""
    order = np.array(sorted(levels, key=lambda level: (abs(level), -level)))
    return [order[np.abs(zi[..., None] - order).argmin(-1)] for zi in z]


@dataclass
class Penalty:
    """ρR with its maximizer; `kind` is l0, l1, l2, elastic (rho is a pair), half, two_thirds."""

    kind: str
    rho: float

    def value(self, w):
        if self.kind == "elastic":
            return Penalty("l1", self.rho[0]).value(w) + Penalty("l2", self.rho[1]).value(w)
        norms = {
            "l0": lambda a: np.count_nonzero(a),
            "l1": lambda a: np.abs(a).sum(),
            "l2": lambda a: (a**2).sum(),
            "half": lambda a: np.sqrt(np.abs(a)).sum(),
            "two_thirds": lambda a: np.cbrt(a**2).sum(),
        }
        return self.rho * sum(norms[self.kind](wi) for wi in w)

    def prox(self, z, d, epsilon, step):
        if self.kind in ("half", "two_thirds"):
            return fractional(z, d, epsilon, self.rho, 1 / 2 if self.kind == "half" else 2 / 3)
        return {"l0": l0, "l1": l1, "l2": l2, "elastic": elastic}[self.kind](z, d, epsilon, self.rho)

    def admits(self, w, step):
        return True

    def project(self, w, d, step):
        return w


@dataclass
class Groups(Penalty):
    """ρ times the number of groups that are not all zero, along `dim`, each counted once or by its size."""

    kind: str = "group"
    rho: float = 0.0
    dim: int = 0
    by_size: bool = False

    def value(self, w):
        total = 0.0
        for wi in w:
            rows = np.moveaxis(wi, self.dim, 0).reshape(wi.shape[self.dim], -1)
            total += (rows != 0).any(1).sum() * (rows.shape[1] if self.by_size else 1)
        return self.rho * total

    def prox(self, z, d, epsilon, step):
        return group_l0(z, d, epsilon, self.rho, self.dim, self.by_size)


@dataclass
class Levels:
    """At least a share of all weights, those of least d (z − level)², in a finite set; `total` None: all of them."""

    levels: tuple
    total: int | None = None
    start: float = 0.05
    end: float = 0.7

    def value(self, w):
        return 0.0

    def free(self, n, step):
        """How many weights need not be on a level."""
        return Ramp(1.0, self.total, self.start, self.end).count(n, step) if self.total else 0

    def prox(self, z, d, epsilon, step):
        return self.project(z, d, step)

    def admits(self, w, step):
        off = sum((~np.isin(wi, self.levels)).sum() for wi in w)
        return off <= self.free(sum(wi.size for wi in w), step)

    def project(self, w, d, step):
        snapped = nearest(w, self.levels)
        # What is kept of w − level in the metric is what a cardinality would keep.
        rest = [wi - si for wi, si in zip(w, snapped, strict=True)]
        kept = largest(rest, d, self.free(sum(wi.size for wi in w), step))
        return [np.where(k != 0, wi, s) for k, wi, s in zip(kept, w, snapped, strict=True)]


@dataclass
class InBox:
    """low ≤ u ≤ high: the prox of `inside`, clipped, and every group of weights that `inside` prices compared with 0.

    For each weight alone (l0, l1, l2, elastic and the fractional ones); `inside` None is the box alone.
    """

    low: float
    high: float
    inside: Penalty | None = None

    def value(self, w):
        return self.inside.value(w) if self.inside else 0.0

    def prox(self, z, d, epsilon, step):
        free = self.inside.prox(z, d, epsilon, step) if self.inside else z
        out = []
        for zi, di, fi in zip(z, d, free, strict=True):
            new = np.clip(fi, self.low, self.high)
            for i in np.ndindex(zi.shape):
                # 0 is in the box of every test with a penalty that is not convex.
                cost = [self.value([np.array([u])]) + epsilon * di[i] * (u - zi[i]) ** 2 for u in (0.0, new[i])]
                if self.inside and self.low <= 0 <= self.high and cost[0] <= cost[1]:
                    new[i] = 0.0
            out.append(new)
        return out

    def admits(self, w, step):
        return all(((self.low <= wi) & (wi <= self.high)).all() for wi in w)

    def project(self, w, d, step):
        return [np.clip(wi, self.low, self.high) for wi in w]


@dataclass
class Ramp:
    """‖u‖₀ ≤ k with a cubic ramp between two shares of the training."""

    sparsity: float
    total: int
    start: float = 0.05
    end: float = 0.5
    per_layer: bool = False
    low: float = -math.inf
    high: float = math.inf
    minimum: int = 1

    def value(self, w):
        return 0.0

    def places(self, sizes, step):
        """How many may be non-zero, of arrays of these sizes that compete."""
        return max(self.count(sum(sizes), step), sum(min(n, self.minimum) for n in sizes))

    def count(self, n, step):
        first = min(int(self.start * self.total), self.total - 1)
        last = min(max(int(self.end * self.total), first), self.total - 1)
        if step >= last:
            demanded = self.sparsity
        else:
            interval = min(max(self.total // 200, 2), 100)
            reached = max(step - first, 0) // interval * interval
            demanded = self.sparsity * (1 - (1 - reached / (last - first)) ** 3)
        return n - round(demanded * n)

    def parts(self, w):
        return [[wi] for wi in w] if self.per_layer else [w]

    def prox(self, z, d, epsilon, step):
        return self.project(z, d, step)

    def admits(self, w, step):
        within = all(((self.low <= wi) & (wi <= self.high)).all() for wi in w)
        return within and all(
            sum(max(np.count_nonzero(wi), min(self.minimum, wi.size)) for wi in p)
            <= self.places([wi.size for wi in p], step)
            for p in self.parts(w)
        )

    def project(self, w, d, step):
        out = []
        for wp, dp in zip(self.parts(w), self.parts(d), strict=True):
            places = self.places([wi.size for wi in wp], step)
            out += largest(wp, dp, places, self.low, self.high, self.minimum)
        return out


@dataclass
class RampOfRows(Ramp):
    """At most k rows of all matrices that are not all zero, kept by Σ d w², with the same ramp."""

    def admits(self, w, step):
        kept = sum(max((wi != 0).any(1).sum(), self.minimum) for wi in w)
        return kept <= self.places([len(wi) for wi in w], step)

    def project(self, w, d, step):
        weight = [np.sqrt((di * wi**2).sum(1)) for wi, di in zip(w, d, strict=True)]
        places = self.places([len(wi) for wi in w], step)
        kept = largest(weight, [np.ones(len(wi)) for wi in w], places, minimum=self.minimum)
        return [np.where(ki[:, None] != 0, wi, 0.0) for ki, wi in zip(kept, w, strict=True)]


@dataclass
class RampWithL2(Ramp):
    """The same and ρ‖u‖²: what is kept is shrunk, and chosen by how much that is better than zero."""

    rho: float = 0.0

    def value(self, w):
        return self.rho * sum((wi**2).sum() for wi in w)

    def prox(self, z, d, epsilon, step):
        shrunk = l2(z, d, epsilon, self.rho)
        gains = []
        for zi, di, si in zip(z, d, shrunk, strict=True):
            kept = epsilon * di * (si - zi) ** 2 + self.rho * si**2
            gains.append(np.sqrt(np.maximum(epsilon * di * zi**2 - kept, 0.0)))
        places = self.places([zi.size for zi in z], step)
        chosen = largest(gains, [np.ones_like(zi) for zi in z], places, minimum=self.minimum)
        return [np.where(ci != 0, si, 0.0) for ci, si in zip(chosen, shrunk, strict=True)]


@dataclass
class ByName:
    """Several regularizers; `parts` are pairs (regularizer, positions of its tensors among those handed over)."""

    parts: list

    def value(self, w):
        return sum(reg.value([w[i] for i in own]) for reg, own in self.parts)

    def admits(self, w, step):
        return all(reg.admits([w[i] for i in own], step) for reg, own in self.parts)

    def prox(self, z, d, epsilon, step):
        return self.merge(z, lambda reg, own: reg.prox([z[i] for i in own], [d[i] for i in own], epsilon, step))

    def project(self, w, d, step):
        return self.merge(w, lambda reg, own: reg.project([w[i] for i in own], [d[i] for i in own], step))

    def merge(self, tensors, change):
        out = list(tensors)
        for reg, own in self.parts:
            for i, new in zip(own, change(reg, own), strict=True):
                out[i] = new
        return out


# ---------------------------------------------------------------- rules for ε, §4
@dataclass
class BacktrackingTwin:
    epsilon: float
    sigma: float = 1.1
    zeta: float = 0.9

    def for_length(self, epsilon, length, relative):
        return epsilon

    def observe(self, accepted, change, slope, tau, tightened, length, relative, progress):
        self.epsilon *= self.zeta if accepted else self.sigma


@dataclass
class CurvatureTwin:
    epsilon: float
    floor: float = 0.0
    safety: float = 0.55
    numerator: float = 0.0
    denominator: float = 0.0
    settled: bool = False
    outlier: float = 10.0
    length: float | None = None
    # A plain step's length as a share of that of the weights.
    longest: float = math.inf
    shortest: float = 0.0
    relative: float | None = None
    steps: int = 0
    grown: float = 0.25
    eased: float = 1.0

    def __post_init__(self):
        self.epsilon = max(self.epsilon, self.floor)

    def for_length(self, epsilon, length, relative):
        if self.relative is None and relative / (2 * epsilon) > self.longest:
            return max(for_length(self, epsilon, length), relative / (2 * self.longest))
        return for_length(self, epsilon, length)

    def within(self, target):
        if self.relative is not None and self.longest < math.inf:
            shortest = self.shortest * self.grown * self.eased
            of_shortest = self.relative / (2 * shortest) if shortest > 0 else math.inf
            target = np.clip(target, self.relative / (2 * self.longest), of_shortest)
        return max(target, self.floor)

    def observe(self, accepted, change, slope, tau, tightened, length, relative, progress):
        if accepted:
            usual = length if self.length is None else self.length
            self.length = 0.9 * usual + 0.1 * min(length, self.outlier * usual)
            if self.relative is None and self.longest < math.inf:
                self.epsilon, self.relative = max(self.epsilon, relative / (2 * self.longest)), relative
            elif self.longest < math.inf:
                self.relative = 0.9 * self.relative + 0.1 * relative
            self.steps += 1
            # A quarter at first, all of it after a fifth of the training or 200 steps.
            self.grown = min(1, 0.25 + 0.75 * (self.steps / 200 if progress is None else progress / 0.2))
            if tightened and self.settled:
                self.epsilon *= math.exp(np.clip(0.05 * math.log(self.within(self.epsilon) / self.epsilon), -0.05, 0.1))
        second_order = change + slope
        known = math.isfinite(second_order) and tau > 0 and second_order != 0
        if not accepted:
            target = self.safety * second_order / tau if known else math.inf
            self.epsilon = np.clip(target, 1.1 * self.epsilon, 2 * self.epsilon)
            self.eased *= 0.8
        elif known and not tightened:
            self.numerator = 0.9 * self.numerator + 0.1 * second_order
            self.denominator = 0.9 * self.denominator + 0.1 * tau
            target = self.within(self.safety * self.numerator / self.denominator)
            distance = math.log(target / self.epsilon) if target > 0 else -math.inf
            self.settled = self.settled or distance >= -1
            if self.settled or target <= 0:
                self.epsilon *= math.exp(np.clip(0.05 * distance, -0.05, 0.1))
            else:
                # As long as ε has never been near its target: half of it, or the target itself if that is nearer.
                self.epsilon = max(target, self.epsilon / 2)
        if accepted:
            self.eased = min(1.002 * self.eased, 1)


def for_length(rule, epsilon, length):
    """Σ g²/(4d), the ε²τ of a plain step, no more than ten times as large as usual."""
    if rule.length is None:
        return epsilon
    return max(epsilon, epsilon * math.sqrt(length / (rule.outlier * rule.length)))


# ---------------------------------------------------------------- the iteration, §2
@dataclass
class Twin:
    """u^{k+1} from u^k; `regularized` are the indices of the arrays that R acts on."""

    u: list
    regularized: list
    regularizer: object
    rule: object
    metric: str = "rms"
    averaging: float | None = None
    eta: float = 1e-4
    max_trials: int = 6
    total: int | None = None
    trial_every: int = 1
    step_count: int = 0
    interval: int = 1
    untested: int = 0
    before: list | None = None
    mean_loss: float | None = None
    spread: float = math.inf
    mean_square: list = field(default_factory=list)
    updates: list = field(default_factory=list)
    mean: list | None = None

    def _averaged(self, gradient):
        """The mean gradient with this one taken in, along which candidates are made."""
        share = (0.8 if self.metric == "rms" else 0.0) if self.averaging is None else self.averaging
        if self.mean is None:
            return gradient
        return [share * m + (1 - share) * g for m, g in zip(self.mean, gradient, strict=True)]

    def _metric(self, gradient):
        if self.metric == "euclidean":
            return [np.ones_like(g) for g in gradient]
        if not self.mean_square:
            self.mean_square = [np.zeros_like(g) for g in gradient]
            self.updates = [0] * len(gradient)
        metric = []
        for i, g in enumerate(gradient):
            self.mean_square[i] = 0.999 * self.mean_square[i] + 0.001 * g**2
            if self.updates[i] > 0 or np.any(g != 0):
                self.updates[i] += 1
                metric.append(np.sqrt(self.mean_square[i] / (1 - 0.999 ** self.updates[i])) + 1e-8)
            else:  # no gradient has ever reached it: last where weights of all layers compete, else the plain method
                metric.append(np.full_like(g, 1.0 if getattr(self.regularizer, "per_layer", True) else 1e-8))
        return metric

    def _raise(self):
        if self.total is None:
            return 1.0
        return min(2 / (1 + math.cos(math.pi * self.step_count / self.total)), 1000.0)

    def _average(self, loss):
        if self.mean_loss is None:
            self.mean_loss, self.spread = loss, abs(loss)
        self.spread = 0.95 * self.spread + 0.05 * abs(loss - self.mean_loss)
        self.mean_loss = 0.95 * self.mean_loss + 0.05 * loss

    def step(self, loss_and_gradient):
        loss, gradient = loss_and_gradient(self.u)  # ∇L_B = −G
        if self.before is not None and loss > self.mean_loss + abs(self.mean_loss) + 10 * self.spread:
            self.u, self.before, self.interval, self.untested = self.before, None, 1, 0
            self.mean = None
            self.rule.observe(False, math.inf, 0.0, 0.0, False, math.nan, math.nan, None)
            epsilon = self.rule.epsilon * self._raise()
            self.step_count += 1
            return {
                "accepted": False,
                "trials": 0,
                "too_long": False,
                "epsilon": epsilon,
                "tau": 0.0,
                "loss_decrease": 0.0,
                "back": True,
            }
        d = self._metric(gradient)
        followed = self._averaged(gradient)
        remembered = followed
        w = [a.copy() for a in self.u]
        reg, idx, k = self.regularizer, self.regularized, self.step_count
        tightened = not reg.admits([w[i] for i in idx], k)
        accepted = projected = False
        trials = 0
        least = 0.0
        compared = 0
        too_long = False
        length = sum((g**2 / (4 * di)).sum() for g, di in zip(gradient, d, strict=True))
        # Only where w is not zero: elsewhere most of the step is thresholded away.
        direction = sum(((g / di)[wi != 0] ** 2).sum() for g, di, wi in zip(gradient, d, w, strict=True))
        relative = math.sqrt(direction / sum((wi**2).sum() for wi in w))
        start, first_loss, rule_epsilon = [a.copy() for a in w], loss, self.rule.epsilon
        epsilon = self.rule.epsilon * self._raise()
        calm = not tightened and self.rule.for_length(epsilon, length, relative) <= epsilon
        if self.untested + 1 < self.interval and calm:
            z = [wi - m / (2 * epsilon * di) for wi, m, di in zip(w, followed, d, strict=True)]
            for i, a in zip(idx, reg.prox([z[i] for i in idx], [d[i] for i in idx], epsilon, k), strict=True):
                z[i] = a
            self.u, self.before, self.untested = z, start, self.untested + 1
            self.mean = remembered
            self._average(loss)
            self.step_count += 1
            tau = sum((di * (c - wi) ** 2).sum() for c, wi, di in zip(z, w, d, strict=True))
            return {
                "accepted": True,
                "trials": 0,
                "too_long": False,
                "epsilon": epsilon,
                "tau": tau,
                "loss_decrease": math.nan,
            }
        while not accepted and compared < self.max_trials:
            trials, compared = trials + 1, compared + 1
            epsilon = max(self.rule.epsilon * self._raise(), least)

            def maximiser(epsilon, w=w, followed=followed):
                z = [wi - m / (2 * epsilon * di) for wi, m, di in zip(w, followed, d, strict=True)]
                for i, a in zip(idx, reg.prox([z[i] for i in idx], [d[i] for i in idx], epsilon, k), strict=True):
                    z[i] = a
                return z

            raised = self.rule.for_length(epsilon, length, relative)
            if raised > epsilon:  # the candidate for the smaller one has been tried, but is not looked at
                trials, epsilon, too_long = trials + 1, raised, True
            candidate = maximiser(epsilon)
            used = followed
            if epsilon > self.rule.epsilon * self._raise():
                least = 1.5 * epsilon
            trial_loss, _ = loss_and_gradient(candidate)

            def compare(candidate=candidate, trial_loss=trial_loss, loss=loss):
                tau = sum((di * (c - wi) ** 2).sum() for c, wi, di in zip(candidate, w, d, strict=True))
                slope = -sum((g * (c - wi)).sum() for c, wi, g in zip(candidate, w, gradient, strict=True))
                change = trial_loss - loss
                penalty = reg.value([candidate[i] for i in idx]) - reg.value([w[i] for i in idx])
                ok = math.isfinite(change) and change + penalty <= -self.eta * tau
                return ok, change, slope, tau, penalty

            accepted, change, slope, tau, penalty = compare()
            if not accepted and tightened and not projected:
                projected = True
                for i, a in zip(idx, reg.project([w[i] for i in idx], [d[i] for i in idx], k), strict=True):
                    w[i] = a
                loss, _ = loss_and_gradient(w)
                accepted, change, slope, tau, penalty = compare(loss=loss)
            progress = None if self.total is None else self.step_count / self.total
            if not accepted:  # from now on the batch's own gradient, which is sure to lower the batch's own loss
                followed = gradient
            for _ in range(self.untested + 1 if accepted and trials == 1 else 1):
                self.rule.observe(accepted, change, slope, tau, tightened, length, relative, progress)
        self._average(first_loss)
        calm = accepted and trials == 1 and not tightened and self.step_count >= 50
        calm = calm and abs(math.log(self.rule.epsilon / rule_epsilon)) <= 0.04 * (self.untested + 1)
        self.interval = min(2 * self.interval, self.trial_every) if calm else 1
        self.untested, self.before = 0, None
        self.u = candidate if accepted else w
        self.mean = remembered if accepted else None
        self.step_count += 1
        return {
            "accepted": accepted,
            "trials": trials,
            "too_long": too_long,
            "epsilon": epsilon,
            "tau": tau if accepted else 0.0,
            "loss_decrease": -(change + penalty) if accepted else 0.0,
            "gain": -sum((m * (c - wi)).sum() for c, wi, m in zip(candidate, w, used, strict=True))
            - penalty
            - epsilon * tau,
        }
