"""Change: the order in which changes are undone, and what stands in the way."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import sitout
from surgery.networks import Shared, same_tree, tree


def two():
    return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))


def replaced(model):
    return sitout.replace(model)


def rated(model):
    return sitout.set_rate(model, 0.25)


def inserted(model):
    return sitout.insert(model, 0.1, "*")


def test_undo_is_done_once():
    model = two()
    change = sitout.set_rate(model, 0.2)
    change.undo()
    model[1].p = 0.9
    change.undo()
    assert model[1].p == 0.9


def test_a_block_is_undone_after_an_exception_too():
    model = two()
    before = tree(model)
    with pytest.raises(KeyError), sitout.replace(model):
        raise KeyError
    assert same_tree(tree(model), before)


def test_a_change_says_what_it_did():
    change = sitout.replace(Shared())
    assert repr(change) == "Change(replace, sites=4, unreached=0)"
    assert str(change).splitlines() == [
        "replace: 4 sites",
        "  drop",
        "  body.1",
        "  heads.0",
        "  heads.1",
    ]
    change.undo()
    assert repr(change).endswith("undone)")


ORDERS = [(rated, rated), (replaced, rated), (rated, replaced)]


@pytest.mark.parametrize(("first", "second"), ORDERS)
def test_the_later_change_is_to_be_undone_first(first, second):
    model = Shared()
    before = tree(model)
    one = first(model)
    between = tree(model)
    two = second(model)
    after = tree(model)
    with pytest.raises(RuntimeError, match="Undo that first"):
        one.undo()
    assert same_tree(tree(model), after)
    two.undo()
    assert same_tree(tree(model), between)
    one.undo()
    assert same_tree(tree(model), before)


def test_a_layer_in_an_inserted_place_is_to_be_undone_first():
    model = nn.Sequential(nn.Linear(4, 4))
    one = sitout.insert(model, 0.1, "0", layer=nn.Dropout)
    two = sitout.replace(model)
    with pytest.raises(RuntimeError, match="Undo that first"):
        one.undo()
    two.undo()
    one.undo()
    assert not model[0]._modules


def test_changes_of_other_places_are_undone_in_any_order():
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.4))
    one = sitout.set_rate(model, 0.1, "0")
    two = sitout.set_rate(model, 0.2, "1")
    one.undo()
    two.undo()
    assert [layer.p for layer in model] == [0.5, 0.4]


def test_a_change_that_nobody_keeps_stands_in_nobodys_way():
    model = two()
    change = sitout.replace(model)
    sitout.set_rate(model, 0.3)
    gc.collect()
    change.undo()
    assert model[1].p == 0.5


@pytest.mark.parametrize("again", [lambda model: setattr(model[1], "p", 0.3), rated])
def test_a_rate_that_was_set_anew_is_not_taken_back(again):
    model = two()
    change = sitout.set_rate(model, 0.2)
    again(model)
    gc.collect()
    mine = model[1].p
    with pytest.raises(RuntimeError, match=r"something else at '1\.p'"):
        change.undo()
    assert model[1].p == mine
    model[1].p = 0.2
    change.undo()
    assert model[1].p == 0.5


def test_a_rate_whose_layer_is_gone_is_not_said_to_be_taken_back():
    model = two()
    change = sitout.set_rate(model, 0.2)
    model[1] = nn.Dropout(0.2)
    with pytest.raises(RuntimeError, match=r"something else at '1\.p'"):
        change.undo()
    del model[1]
    with pytest.raises(RuntimeError, match=r"something else at '1\.p'"):
        change.undo()


def swap_in_a_block(model, error=None):
    with sitout.replace(model):
        model[1] = nn.Identity()
        if error is not None:
            raise error


def test_an_exception_in_a_block_is_not_lost_where_undo_fails():
    with pytest.raises(KeyError, match="mine") as caught:
        swap_in_a_block(two(), KeyError("mine"))
    assert "something else at '1'" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="something else at '1'"):
        swap_in_a_block(two())


def test_a_full_backward_hook_that_was_added_later_lives_on():
    model, seen = two(), []
    change = sitout.replace(model)
    handle = model[1].register_full_backward_hook(lambda *_: seen.append(1))
    change.undo()
    model(torch.ones(2, 4)).sum().backward()
    assert seen == [1]
    handle.remove()


def test_what_somebody_else_has_put_there_is_not_taken_away():
    model = two()
    change = sitout.replace(model)
    mine = model[1]
    model[1] = nn.Identity()
    with pytest.raises(RuntimeError, match="something else at '1'"):
        change.undo()
    assert type(model[1]) is nn.Identity
    model[1] = mine
    change.undo()
    assert type(model[1]) is nn.Dropout


@pytest.mark.parametrize("change", [replaced, rated, inserted])
def test_nothing_is_changed_while_the_model_is_disabled(change):
    model = nn.ModuleDict({"a": nn.Dropout(0.5)})["a"]
    outer = nn.Sequential(model)
    with (
        sitout.disabled(outer),
        pytest.raises(RuntimeError, match=r"outside of disabled\(model\)"),
    ):
        change(outer)
    assert outer[0] is model
    assert model.p == 0.5


def test_nothing_is_undone_while_the_model_is_disabled():
    model = two()
    change = sitout.replace(model)
    with sitout.disabled(model), pytest.raises(RuntimeError, match="undo must be called outside"):
        change.undo()
    assert model[1].p == 0.5
    change.undo()
    assert type(model[1]) is nn.Dropout
