"""MuseFormer: two streams, tokens and one summary per bar, under block-sparse rules.

Shape suffixes: B rows, T tokens, S summaries, N keys, D width, H query heads, G key/value heads,
K head width, F feed-forward width, V vocabulary, Q query blocks.
"""
