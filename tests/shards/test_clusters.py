import networkx
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from meloformer.shards.clusters import UnionFind

ROWS = 40
PAIRS = st.lists(st.tuples(st.integers(0, ROWS - 1), st.integers(0, ROWS - 1)), max_size=60)


@given(st.lists(PAIRS, max_size=4))
def test_labels_are_the_smallest_rows_of_connected_components(batches: list[list]) -> None:
    clusters = UnionFind(ROWS)
    graph = networkx.empty_graph(ROWS)
    for batch in batches:
        clusters.add(np.array(batch, np.int64).reshape(-1, 2))
        graph.add_edges_from(batch)
    labels = clusters.labels()
    for component in networkx.connected_components(graph):
        assert {int(labels[row]) for row in component} == {min(component)}


def test_a_long_chain_is_one_cluster_however_it_comes() -> None:
    num = 200_000
    links = np.stack([np.arange(num - 1), np.arange(1, num)], axis=1)
    for order in (links, links[::-1], np.random.default_rng(0).permutation(links)):
        clusters = UnionFind(num)
        for batch in np.array_split(order, 7):
            clusters.add(batch)
        assert not clusters.labels().any()


def test_pairs_once_added_may_come_again() -> None:
    clusters = UnionFind(3)
    for _ in range(2):
        clusters.add(np.array([[1, 2], [2, 1]]))
    assert clusters.labels().tolist() == [0, 1, 1]
