"""Triton kernels on rows of logits; :mod:`sparsepo.scoring.triton_rows` calls them. Importing this needs triton.

Each lane of a block keeps its own running maxima and sums, which are rescaled when a maximum grows (online softmax) and
joined once at the end of the row: no step of the loop waits for the other lanes, and sums are short.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What row_statistics_kernel writes for each row, in this order
LOGP, NORMALISER, REST, REF_LOGP, REF_NORMALISER, REF_REST, KL, ENTROPY, MEAN, IS_TOP1 = range(10)
OUTPUTS = 10


@triton.jit
def _store_normaliser(values, where, peak, log_sum, y):
    """Log-probability of logit ``y``, the log-normaliser peak + log_sum, and the rounding error of that sum."""
    normaliser = peak + log_sum
    added = normaliser - peak
    rest = (peak - (normaliser - added)) + (log_sum - added)  # exact (Knuth's two-sum)
    tl.store(values, (y - peak) - log_sum)
    tl.store(values + where, normaliser)
    tl.store(values + 2 * where, rest)


@triton.jit
def row_statistics_kernel(
    policy,
    reference,
    targets,
    values,
    policy_stride,
    reference_stride,
    rows,
    vocabulary,
    HAS_REFERENCE: tl.constexpr,
    NEED_KL: tl.constexpr,
    STATISTICS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row, one read of its logits; ``values`` is (OUTPUTS, rows).

    With d = (w − max w) − (z − max z), KL(reference‖policy) = Σ e^(w − max w) d / A − log(A / B), where A and B are the
    sums of e^(w − max w) and e^(z − max z): of near-equal models every term is small, so nothing cancels.
    """
    row = tl.program_id(0).to(tl.int64)
    dtype: tl.constexpr = policy.dtype.element_ty
    lanes = tl.arange(0, BLOCK)
    zero = tl.zeros([BLOCK], dtype)
    target = tl.load(targets + row)
    policy += row * policy_stride
    z_y = tl.load(policy + target)
    z_peak = zero + z_y  # a lower bound of the maximum, and finite
    z_sum = zero
    if HAS_REFERENCE:
        reference += row * reference_stride
        w_y = tl.load(reference + target)
        w_peak = zero + w_y
        w_sum = zero
        cross = zero
    if STATISTICS:
        weighted = zero
        plain = zero
        beaten = tl.zeros([BLOCK], tl.int32)

    for start in range(0, vocabulary, BLOCK):
        columns = start + lanes
        inside = columns < vocabulary
        z = tl.load(policy + columns, mask=inside, other=0.0)
        z = tl.where(inside, z, z_y)
        peak = tl.maximum(z_peak, z)
        z_old = z_peak - peak
        z_peak = peak
        z_new = z - peak
        shrink = tl.exp(z_old)
        e = tl.where(inside, tl.exp(z_new), 0.0)
        if STATISTICS:
            weighted = (weighted + z_old * z_sum) * shrink + e * z_new
            plain += tl.where(inside, z, 0.0)
            # the arg-max, lowest index among equals, is the target where no lane finds anything before it
            beaten |= ((z > z_y) | ((z == z_y) & (columns < target))).to(tl.int32)
        z_sum = z_sum * shrink + e
        if HAS_REFERENCE:
            w = tl.load(reference + columns, mask=inside, other=0.0)
            w = tl.where(inside, w, w_y)
            peak = tl.maximum(w_peak, w)
            w_old = w_peak - peak
            w_peak = peak
            w_new = w - peak
            shrink = tl.exp(w_old)
            e = tl.where(inside, tl.exp(w_new), 0.0)
            if NEED_KL:
                cross = (cross + (w_old - z_old) * w_sum) * shrink + e * (w_new - z_new)
            w_sum = w_sum * shrink + e

    peak = tl.max(z_peak, axis=0)
    z_old = z_peak - peak
    shrink = tl.exp(z_old)
    total = tl.sum(z_sum * shrink, axis=0)
    log_total = tl.log(total)
    values += row
    _store_normaliser(values, rows, peak, log_total, z_y)
    if HAS_REFERENCE:
        peak = tl.max(w_peak, axis=0)
        w_old = w_peak - peak
        w_shrink = tl.exp(w_old)
        ref_total = tl.sum(w_sum * w_shrink, axis=0)
        _store_normaliser(values + 3 * rows, rows, peak, tl.log(ref_total), w_y)
        if NEED_KL:
            moved = (cross + (w_old - z_old) * w_sum) * w_shrink
            kl = tl.sum(moved, axis=0) / ref_total - tl.log(ref_total / total)
            tl.store(values + 6 * rows, kl)
    if STATISTICS:
        moved = (weighted + z_old * z_sum) * shrink
        tl.store(values + 7 * rows, log_total - tl.sum(moved, axis=0) / total)
        tl.store(values + 8 * rows, tl.sum(plain, axis=0) / vocabulary)
        tl.store(values + 9 * rows, 1.0 - tl.max(beaten, axis=0).to(dtype))


@triton.jit
def logit_gradient_kernel(
    policy,
    reference,
    out,
    targets,
    normaliser,
    rest,
    ref_normaliser,
    ref_rest,
    g,
    c,
    policy_stride,
    reference_stride,
    out_stride,
    vocabulary,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_REFERENCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a block of a row: [g (1[v = y] − p) + c (p − q)] · cap's slope · scale; ``out`` may be ``policy``."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    g_t = tl.load(g + row)
    c_t = tl.load(c + row)
    z = tl.load(policy + row * policy_stride + columns, mask=inside, other=0.0)
    # the normaliser in two parts: a rounding error of it would be the same in the whole row
    p = tl.exp((z - tl.load(normaliser + row)) - tl.load(rest + row))
    dz = g_t * (tl.where(columns == tl.load(targets + row), 1.0, 0.0) - p)
    if HAS_REFERENCE:
        w = tl.load(reference + row * reference_stride + columns, mask=inside, other=0.0)
        q = tl.exp((w - tl.load(ref_normaliser + row)) - tl.load(ref_rest + row))
        dz += c_t * (p - q)
    else:
        dz += c_t * p
    if SOFTCAP is not None:
        x = z / SOFTCAP
        dz *= tl.maximum(1.0 - x * x, 0.0)
    tl.store(out + row * out_stride + columns, (dz * SCALE).to(out.dtype.element_ty), mask=inside)


@triton.jit
def probabilities_kernel(rows, normaliser, rest, stride, vocabulary, BLOCK: tl.constexpr):
    """One program a block of a row: logits → probabilities in place."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < vocabulary
    place = rows + row * stride + columns
    z = tl.load(place, mask=inside, other=0.0)
    p = tl.exp((z - tl.load(normaliser + row)) - tl.load(rest + row))
    tl.store(place, p, mask=inside)
