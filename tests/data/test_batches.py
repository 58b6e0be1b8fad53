"""Groups become rows of tokens, each answer knowing its prompt, its places and what predicts it; nothing is cut in silence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.batches import Encoded, Group, area_of, batch_indices, collate, encode, shared_beginning, shuffled, split_by_budget
from preftune.data.template import Renderer
from preftune.errors import DataError
from preftune.records import Message

PAD = 99
# One prompt of two tokens with two answers, and one prompt of one token with one answer.
PAIR = Group((10, 11), ((20, 21, 2), (30, 2)), 0)
SINGLE = Group((12,), ((40, 2),), 1)


@pytest.fixture(scope="module")
def renderer(tiny_tokenizer):
    return Renderer(tiny_tokenizer)


def user(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


def test_a_tree_row_by_hand():
    batch = collate([PAIR, SINGLE], PAD)
    #                                prompt | answer 1   | answer 2
    assert batch.ids.tolist() == [
        [10, 11, 20, 21, 2, 30, 2],
        [12, 40, 2, PAD, PAD, PAD, PAD],
    ]
    # The second answer begins again behind the prompt.
    assert batch.position_ids.tolist() == [
        [0, 1, 2, 3, 4, 2, 3],
        [0, 1, 2, 0, 0, 0, 0],
    ]
    assert batch.segment.tolist() == [
        [0, 0, 1, 1, 1, 2, 2],
        [0, 1, 1, -1, -1, -1, -1],
    ]
    assert batch.sequence.tolist() == [
        [-1, -1, 0, 0, 0, 1, 1],
        [-1, 2, 2, -1, -1, -1, -1],
    ]
    # The first token of each answer is predicted at the prompt's last one; what nothing predicts points at itself.
    assert batch.parent.tolist() == [
        [0, 0, 1, 2, 3, 1, 5],
        [0, 0, 1, 3, 4, 5, 6],
    ]
    assert batch.completion_mask.tolist() == [
        [False, False, True, True, True, True, True],
        [False, True, True, False, False, False, False],
    ]
    assert (batch.num_sequences, batch.plain, batch.num_tokens) == (3, False, 10)


def test_plain_rows_by_hand():
    batch = collate([PAIR, SINGLE], PAD, tree=False)
    assert batch.ids.tolist() == [
        [10, 11, 20, 21, 2],
        [10, 11, 30, 2, PAD],
        [12, 40, 2, PAD, PAD],
    ]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 0], [0, 1, 2, 0, 0]]
    assert batch.parent.tolist() == [[0, 0, 1, 2, 3], [0, 0, 1, 2, 4], [0, 0, 1, 3, 4]]
    assert batch.sequence.tolist() == [[-1, -1, 0, 0, 0], [-1, -1, 1, 1, -1], [-1, 2, 2, -1, -1]]
    assert (batch.num_sequences, batch.plain) == (3, True)


def test_rows_of_one_answer_each_are_plain_in_a_tree_too():
    assert collate([SINGLE], PAD).plain
    assert not collate([SINGLE, PAIR], PAD).plain


def test_who_sees_whom_in_a_tree_row_by_hand():
    seen = collate([Group((10, 11), ((20, 2), (30,)), 0)], PAD).tree_mask()[0, 0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0],  # prompt
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],  # answer 1
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # answer 2 does not see answer 1
    ]


def test_what_all_prompts_begin_with_stands_once_and_every_token_sees_it():
    begun = tuple(range(100, 108))
    batch = collate([Group((*begun, 10, 11), ((20, 2), (30,)), 0), Group((*begun, 12), ((40,),), 1)], PAD)
    assert batch.beginning == begun
    assert batch.ids.tolist() == [[10, 11, 20, 2, 30], [12, 40, PAD, PAD, PAD]]
    assert batch.position_ids.tolist() == [[8, 9, 10, 11, 10], [8, 9, 0, 0, 0]]
    assert batch.parent.tolist() == [[0, 0, 1, 2, 1], [0, 0, 2, 3, 4]]
    assert batch.num_tokens == 15
    seen = batch.tree_mask()[0, 0].int()
    assert seen[:, :8].all()
    assert seen[4, 8:].tolist() == [1, 1, 0, 0, 1]
    within = batch.tree_mask(window=3)[0, 0].int()
    assert within[0].tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]  # position 8 sees 6, 7 and itself


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([range(20), range(20)], 19),  # each keeps a token of its own
        ([range(20), range(9)], 8),
        ([range(20), range(8)], 0),  # seven are not worth a pass of their own
        ([range(20)], 0),
        ([[*range(10), 1, 2], [*range(10), 3], [*range(9), 5, 5, 5]], 9),
    ],
)
def test_a_beginning_is_shared_where_it_is_long_enough(prompts, shared):
    assert shared_beginning([tuple(p) for p in prompts]) == shared


def test_a_window_counts_positions_and_not_places_in_the_row():
    seen = collate([Group((10, 11, 12), ((20, 2), (30, 31)), 0)], PAD).tree_mask(window=2)[0, 0].int().tolist()
    assert seen[3:] == [
        [0, 0, 1, 1, 0, 0, 0],  # answer 1: itself and one before
        [0, 0, 0, 1, 1, 0, 0],
        [0, 0, 1, 0, 0, 1, 0],  # answer 2 stands next to the prompt, though its place in the row is further off
        [0, 0, 0, 0, 0, 1, 1],
    ]


def test_padding_that_equals_the_end_token_leaves_the_end_learned():
    batch = collate([PAIR, SINGLE], 2, tree=False)
    ends = (batch.ids == 2) & batch.completion_mask
    assert ends.sum(1).tolist() == [1, 1, 1]
    assert batch.attention_mask.sum(1).tolist() == [5, 4, 3]


@given(
    shape=st.lists(st.tuples(st.integers(1, 5), st.lists(st.integers(1, 6), min_size=1, max_size=4)), min_size=1, max_size=5),
    tree=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_answer_is_found_whole_and_in_order_by_following_its_parents(shape, tree):
    number = iter(range(1, 10_000))
    groups = [
        Group(tuple(next(number) for _ in range(p)), tuple(tuple(next(number) for _ in range(c)) for c in answers), i)
        for i, (p, answers) in enumerate(shape)
    ]
    batch = collate(groups, PAD, tree=tree)
    expected = [(g.prompt, c) for g in groups for c in g.completions]
    assert batch.num_sequences == len(expected)
    for which, (prompt, completion) in enumerate(expected):
        rows, places = (batch.sequence == which).nonzero(as_tuple=True)
        assert len(set(rows.tolist())) == 1
        row, place = int(rows[0]), int(places[-1])
        path = [place]
        while int(batch.parent[row, place]) != place:
            place = int(batch.parent[row, place])
            path.append(place)
        assert batch.ids[row, path[::-1]].tolist() == [*prompt, *completion]
        assert batch.position_ids[row, path[::-1]].tolist() == list(range(len(prompt) + len(completion)))
        assert batch.tree_mask()[row, 0, places[-1]].nonzero().flatten().tolist() == sorted(path)
    assert int(batch.completion_mask.sum()) == sum(len(c) for _, c in expected)
    assert bool((batch.ids[~batch.attention_mask] == PAD).all())


def test_groups_hold_the_prompt_once_and_every_answer_with_its_end(renderer):
    encoded = encode(renderer, [(user("Hi"), ["One.", "Two words."])], max_tokens=100)
    (group,) = encoded.groups
    assert group.prompt == tuple(renderer.prompt_ids(user("Hi")))
    assert group.completions == (tuple(renderer.completion_ids("One.")), tuple(renderer.completion_ids("Two words.")))
    assert all(c[-1] == renderer.end_id for c in group.completions)
    assert group.num_tokens == len(group.prompt) + group.num_completion_tokens
    assert group.num_completion_tokens == sum(map(len, group.completions))


def test_what_is_too_long_is_left_out_whole_and_counted(renderer):
    items = [(user("Hi"), ["One.", "Two."]), (user("Hi"), ["One.", "Too long. " * 40]), (user("Hello " * 60), ["One.", "Two."])]
    encoded = encode(renderer, items, max_tokens=60)
    assert [g.index for g in encoded.groups] == [0]  # its place in the data
    assert encoded.facts() == {"groups": 1, "left_out": {"longer than 60 tokens": 2}, "turns_dropped": 0}


def test_the_room_for_the_prompt_is_what_the_longest_answer_leaves(renderer):
    # trl#6548: the room of one answer must not come from another's length.
    prompt, answers = renderer.prompt_ids(user("Hi")), ["x", "a longer one"]
    longest = max(len(renderer.completion_ids(a)) for a in answers)
    assert encode(renderer, [(user("Hi"), answers)], max_tokens=len(prompt) + longest).groups
    with pytest.raises(DataError, match="no example is left to learn from"):
        encode(renderer, [(user("Hi"), answers)], max_tokens=len(prompt) + longest - 1)


def test_oldest_turns_leave_equally_for_all_answers_and_are_counted(renderer):
    turns = [*user("First " * 10), Message(role="assistant", content="Answer."), *user("Last")]
    encoded = encode(renderer, [(turns, ["One.", "Two."])], max_tokens=50)
    assert encoded.groups[0].prompt == tuple(renderer.prompt_ids(user("Last")))
    assert encoded.turns_dropped == 2


@pytest.mark.parametrize(("items", "why"), [([], "there was nothing to read"), ([(user("x" * 200), ["y"])], "1 longer than 40 tokens")])
def test_data_of_which_nothing_is_left_is_a_sentence(renderer, items, why):
    with pytest.raises(DataError, match=f"no example is left to learn from \\({why}\\)"):
        encode(renderer, items, max_tokens=40)


def test_nothing_is_left_out_of_what_is_counted():
    assert Encoded().facts() == {"groups": 0, "left_out": {}, "turns_dropped": 0}


@given(lengths=st.lists(st.integers(1, 30), max_size=30), budget=st.integers(1, 80), shares=st.integers(1, 4))
@settings(max_examples=120, deadline=None)
def test_micro_batches_keep_to_the_budget_and_hold_each_group_once(lengths, budget, shares):
    groups = [Group((1,) * n, ((2,),), i) for i, n in enumerate(lengths)]
    parts = split_by_budget(groups, budget, shares=shares)
    assert len(parts) <= -(-len(split_by_budget(groups, budget)) // shares) * shares
    assert sorted(g.index for part in parts for g in part) == list(range(len(groups)))
    for part in parts:
        area = len(part) * max(g.num_tokens for g in part)
        assert area <= budget or len(part) == 1
    sizes = [part[0].num_tokens for part in parts]
    assert sizes == sorted(sizes, reverse=True)  # the largest runs first, so that a lack of memory shows at once


@given(
    shapes=st.lists(st.tuples(st.integers(1, 20), st.lists(st.integers(1, 6), min_size=1, max_size=3)), min_size=1, max_size=4),
    tree=st.booleans(),
    apart=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_area_of_groups_is_that_of_their_batch(shapes, tree, apart):
    groups = [Group((1,) * n, tuple((2,) * k for k in answers), i) for i, (n, answers) in enumerate(shapes)]
    area, batch = area_of(groups, tree=tree, apart=apart), collate(groups, 0, tree=tree, apart=apart)
    assert (len(area.lengths), max(area.lengths), area.begun) == (*batch.ids.shape, len(batch.beginning))
    assert area.tokens == batch.ids.numel() + len(batch.beginning)
    without = area_of(groups, tree=tree, apart=apart, padded=False)
    assert (without.lengths, without.tokens) == (tuple(batch.attention_mask.sum(1).tolist()), batch.num_tokens)


def test_the_shares_of_processes_are_even_by_their_tokens():
    groups = [Group((1,) * n, ((2,),), i) for i, n in enumerate([400, *[40] * 10])]
    assert [sum(g.num_tokens for g in part) for part in split_by_budget(groups, 1000, shares=2)] == [401, 410]
    even = [Group((1,) * n, ((2,),), i) for i, n in enumerate(range(100, 300, 7))]
    for shares in (2, 4):
        tokens = [sum(g.num_tokens for g in part) for part in split_by_budget(even, 4000, shares=shares)]
        assert len(tokens) == shares
        assert max(tokens) <= sum(tokens) / shares + 150, tokens


def test_micro_batches_do_not_depend_on_the_order_given():
    groups = [Group((1,) * n, ((2,),), i) for i, n in enumerate([3, 9, 9, 1, 4])]
    assert split_by_budget(groups[::-1], 20) == split_by_budget(groups, 20)


@given(count=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_the_steps_of_an_epoch_take_each_item_once(count, batch_size, seed):
    per_epoch = -(-count // batch_size)
    for epoch in range(3):
        steps = [batch_indices(count, batch_size, epoch * per_epoch + k, seed=seed) for k in range(per_epoch)]
        assert all(1 <= len(step) <= batch_size for step in steps)
        assert sorted(i for step in steps for i in step) == list(range(count))


def test_a_batch_depends_on_the_seed_and_the_step_alone():
    torch.manual_seed(1)
    first = [batch_indices(50, 8, step, seed=3) for step in range(20)]
    torch.manual_seed(2)
    assert [batch_indices(50, 8, step, seed=3) for step in reversed(range(20))][::-1] == first
    assert [batch_indices(50, 8, step, seed=4) for step in range(20)] != first


def test_epochs_have_orders_of_their_own_and_two_seeds_share_none():
    orders = [tuple(shuffled(30, seed=seed, epoch=epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == len(orders)
