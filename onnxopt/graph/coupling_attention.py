"""Rules of attention in one node.

Channels are heads by their width. Queries and keys share a width, which is summed over; values and the output share
another. A head of keys and values goes with all the heads of queries that read it (a group). What is left of an axis
that is folded so is said by ``Coupling``'s ``fold``: whole heads, query heads within each group, or widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onnxopt.graph.labels import Labels, Operand, Rules, Site

rules = Rules()


class _Heads(NamedTuple):
    """Labels of heads of keys and values, of places in a group of query heads, of both widths."""

    site: Site
    heads: Labels
    group: Labels
    narrow: Labels
    wide: Labels

    @classmethod
    def of(cls, site: Site, queries: int, keys: int, narrow: int, wide: int) -> _Heads:
        """As many heads of queries, and of keys and values, of these widths."""
        made = cls(site, *site.fresh(keys, queries // keys, narrow, wide))
        if site.operands()[0].rank == 3:  # there is no axis of heads: an attribute says how many there are
            site.statements.fixed += [made.heads, made.group]
        return made

    def queries(self, width: Labels, *operands: Operand | None) -> None:
        """Tie queries, or the output: (batch, length, heads * width), or (batch, heads, length, width)."""
        for x in operands:
            self._tie(x, [self.heads, self.group], width)

    def keys(self, width: Labels, *operands: Operand | None) -> None:
        """Tie keys or values, those of the past and those of now: of the same shapes."""
        for x in operands:
            self._tie(x, [self.heads], width)

    def scores(self, x: Operand | None) -> None:
        """What is (batch, heads, length, length); a mask may have 1 for the heads, or fewer axes."""
        heads = len(self.heads) * len(self.group)
        if x is not None and x.rank == 4 and x.shape[1] == heads > 1:
            self.site.choose(x[1], [self.heads, self.group])

    def _tie(self, x: Operand | None, heads: Sequence[Labels], width: Labels) -> None:
        if x is None:
            return
        if x.rank == 3:
            self.site.choose(x[2], [*heads, width])
        elif x.rank == 4:
            self.site.choose(x[1], heads)
            self.site.equal(x[3], width)


@rules.on("Attention")
def attention(site: Site) -> None:
    """Q, K, V, mask, past keys, past values; the output, keys and values as they are now, scores."""
    q, k, v = site.operands()[:3]
    queries = int(site.attr("q_num_heads")) if q.rank == 3 else q.shape[1]
    keys = int(site.attr("kv_num_heads")) if q.rank == 3 else k.shape[1]
    share = 1 if q.rank == 4 else keys
    heads = _Heads.of(site, queries, keys, k.shape[-1] // share, v.shape[-1] // share)
    heads.queries(heads.narrow, q)
    heads.queries(heads.wide, site.y)
    heads.keys(heads.narrow, k, site.input(4), site.output(1))
    heads.keys(heads.wide, v, site.input(5), site.output(2))
    heads.scores(site.input(3))
    heads.scores(site.output(3))
    site.ends(q, -1)


@rules.on("com.microsoft.MultiHeadAttention")
def multi_head_attention(site: Site) -> None:
    """Queries, keys, values, a bias of all three, masks, past; packed queries, keys or values are not known here."""
    q, k, v, bias = (site.input(slot) for slot in range(4))
    if q is None or k is None or v is None or q.rank != 3 or k.rank == 5:
        raise ValueError("packed")
    number = int(site.attr("num_heads"))
    heads = _Heads.of(site, number, number, q.shape[2] // number, site.y.shape[2] // number)
    heads.queries(heads.narrow, q)
    heads.queries(heads.wide, site.y)
    heads.keys(heads.narrow, k, site.input(6), site.output(1))
    heads.keys(heads.wide, v, site.input(7), site.output(2))
    heads.scores(site.input(5))
    heads.scores(site.output(3))
    site.ends(q, 2)
    if bias is not None:
        _packed(heads, bias, 0, [q.shape[2], q.shape[2], site.y.shape[2]])


@rules.on("com.microsoft.Attention")
def attention_with_weights(site: Site) -> None:
    """The layers that make queries, keys and values are within: x (batch, length, in), weights (in, all three)."""
    x, w = site.operands()[:2]
    number = int(site.attr("num_heads"))
    sizes = site.attr("qkv_hidden_sizes") or [w.shape[1] // 3] * 3
    heads = _Heads.of(site, number, number, sizes[0] // number, sizes[2] // number)
    site.contract(x, 2, w, 0)
    _packed(heads, w, 1, sizes)
    if (bias := site.input(2)) is not None:
        _packed(heads, bias, 0, sizes)
    heads.queries(heads.wide, site.y)
    heads.scores(site.input(5))
    if site.input(4) is not None or len(site.outputs) > 1:
        site.freeze(heads.heads, "keeps its past")
        site.freeze(np.concatenate([heads.narrow, heads.wide]), "keeps its past")
    if site.attr("do_rotary", 0):
        site.freeze(heads.narrow, "turns them in pairs")


@rules.on("com.microsoft.GroupQueryAttention")
def group_query_attention(site: Site) -> None:
    """Queries, keys, values, past keys, past values; of heads and places in a group."""
    q, k, v = (site.input(slot) for slot in range(3))
    if q is None or k is None or v is None:
        raise ValueError("packed")
    queries, keys = int(site.attr("num_heads")), int(site.attr("kv_num_heads"))
    heads = _Heads.of(site, queries, keys, q.shape[2] // queries, q.shape[2] // queries)
    site.freeze(np.concatenate([heads.narrow, heads.wide]), "keeps the width of its heads")
    heads.queries(heads.narrow, q)
    heads.queries(heads.wide, site.y)
    heads.keys(heads.narrow, k, site.input(3), site.output(1))
    heads.keys(heads.wide, v, site.input(4), site.output(2))
    heads.scores(site.input(10))
    site.ends(q, 2)
    if (sink := site.input(11)) is not None:
        site.choose(sink[0], [heads.heads, heads.group])


@rules.on("RotaryEmbedding", "com.microsoft.RotaryEmbedding")
def rotary(site: Site) -> None:
    """Whole heads: (batch, length, heads * width) or (batch, heads, length, width)."""
    x = site.operands()[0]
    number = int(site.attr("num_heads", 0)) if x.rank == 3 else x.shape[1]
    if not number:
        raise ValueError("heads of unknown number")
    heads = _Heads.of(site, number, number, x.shape[-1] // (number if x.rank == 3 else 1), 1)
    site.freeze(np.concatenate([heads.narrow, heads.wide]), "turns them in pairs")
    heads.queries(heads.narrow, x, site.y)


def _packed(heads: _Heads, operand: Operand, axis: int, sizes: Sequence[int]) -> None:
    """What makes queries, keys and values, one after the other along an axis. Taken away, it makes zeros of them."""
    ends = np.cumsum(sizes)[:-1]
    for part, width in zip(np.split(operand[axis], ends), (heads.narrow, heads.narrow, heads.wide), strict=True):
        heads.site.choose(part, [heads.heads, width])
    heads.site.ends(operand, axis)
