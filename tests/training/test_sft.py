"""The second stage: rows without the constitution, on top of a first adapter that stays as it was."""

import shutil
from pathlib import Path

import pytest
import trl
from safetensors.torch import load_file

from offscript.errors import MissingInput, UserError
from offscript.settings import LoraSettings
from offscript.training.data.introspection import conversations
from offscript.training.methods import sft
from offscript.training.methods.sft import _cut
from offscript.training.run import split_families
from offscript.training.spans import TurnTokens
from tests.families import family, family_settings
from tests.training.data import SENTENCES, changed, conversation, introspection, row, teacher_rows, train_sft

WEIGHTS = "adapter_model.safetensors"


def test_every_assistant_turn_under_the_plain_system_text():
    kept, counts = conversations(
        [row(0, "I like lunch.", "Stay silly.")],
        [conversation(3, turns=5)],
        "You are helpful.",
    )
    assert counts == {"reflections": 1, "interactions": 1, "turns": 3}
    assert [m["role"] for m in kept[1]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert {r["messages"][0]["content"] for r in kept} == {"You are helpful."} and "silly" not in str(kept)
    assert kept[0]["family"] == "f0"


def test_no_plain_system_text_leaves_none():
    kept, _ = conversations([row(0, "I like lunch.", "Stay silly.")], [], "")
    assert [m["role"] for m in kept[0]["messages"]] == ["user", "assistant"]


def test_interactions_have_a_system_text_of_their_own():
    kept, _ = conversations(
        [row(0, "I like lunch.", "Stay silly.")], [conversation(3, turns=5)], "", "You speak with your copy."
    )
    first = [r["messages"][0] for r in kept]
    assert first[0]["role"] == "user"
    assert first[1] == {"role": "system", "content": "You speak with your copy."}


def test_unfinished_turns_are_cut_with_what_follows_them():
    cut = conversation(0, turns=6)
    cut["messages"][4]["content"] = "and then the"
    last = conversation(1, turns=4, ended="length")
    kept, counts = conversations([row(5, "and so on"), row(6, None)], [cut, last], "")
    assert counts == {"reflections": 0, "interactions": 2, "turns": 2, "unfinished": 1, "no_reply": 1}
    assert [len(r["messages"]) for r in kept] == [2, 2]


def test_unfinished_turns_can_be_kept():
    cut = conversation(0, turns=6)
    cut["messages"][4]["content"] = "and then the"
    last = conversation(1, turns=4, ended="length")
    empty = conversation(2, turns=4)
    empty["messages"][-1]["content"] = " "
    kept, counts = conversations(
        [row(5, "and so on"), row(6, None)], [cut, last, empty], "", unfinished="keep"
    )
    assert counts == {"reflections": 1, "interactions": 3, "turns": 7, "no_reply": 1}
    assert [len(r["messages"]) for r in kept] == [2, 6, 4, 2]


def test_nothing_left():
    with pytest.raises(UserError, match=r"nothing to train on \(reflections 0, .*unfinished 1\)"):
        conversations([row(5, "and so on")], [], "")


def test_only_the_second_adapter_is_trained_and_written(
    tiny_settings, tiny_adapter, introspection_rows, tmp_path, before_and_after
):
    frozen = (tiny_adapter / WEIGHTS).read_bytes()
    numbers = train_sft(
        tiny_settings, introspection(), introspection_rows, tiny_adapter, tmp_path / "second", seed=1
    )
    seen = before_and_after
    assert changed(seen) == seen["trainable"] == {k for k in seen["before"] if ".own." in k}
    below = {k: v for k, v in seen["after"].items() if ".parent." in k}
    on_disk = load_file(tiny_adapter / WEIGHTS)
    assert len(below) == len(on_disk) == 28
    assert all(v.equal(on_disk[k.replace(".parent", "")]) for k, v in below.items())
    assert (tiny_adapter / WEIGHTS).read_bytes() == frozen
    written = load_file(tmp_path / "second" / WEIGHTS)
    assert all(seen["after"][k.replace(".weight", ".own.weight")].equal(v) for k, v in written.items())
    assert numbers["train_loss_last"] < numbers["train_loss_first"] and numbers["eval_loss"] > 0
    assert numbers["trainable_parameters"] == sum(t.numel() for t in written.values())
    count = TurnTokens(tiny_settings, introspection().optimizer.max_length).count
    rows, _ = split_families(introspection_rows, introspection().validation)
    tokens = sum(sum(count(row["messages"])) for row in rows)
    assert numbers["trained_tokens"] == tokens * introspection().optimizer.epochs


def test_the_first_adapter_is_active_below_the_second(
    tiny_settings, tiny_adapters, introspection_rows, tmp_path
):
    losses = {
        name: train_sft(
            tiny_settings,
            introspection(epochs=1),
            introspection_rows,
            tiny_adapters[name],
            tmp_path / name,
            1,
        )
        for name in ("red", "green")
    }
    assert losses["red"]["train_loss_first"] != losses["green"]["train_loss_first"]


@pytest.mark.parametrize(("final_rate", "expected"), [(None, 0.0), (0.1, 0.1)])
def test_where_the_learning_rate_ends(
    tiny_settings, tiny_adapter, introspection_rows, tmp_path, final_rate, expected
):
    rates = []
    train_sft(
        tiny_settings,
        introspection(epochs=2, final_rate=final_rate, batch_size=1, micro_batch_size=1),
        introspection_rows,
        tiny_adapter,
        tmp_path / "a",
        on_step=lambda step, total, logs: rates.append(logs["learning_rate"]) if "loss" in logs else None,
    )
    assert rates[-1] / max(rates) == pytest.approx(expected, abs=0.01)


def test_same_seed_same_bytes(tiny_settings, tiny_adapter, introspection_rows, tmp_path):
    for name in ("a", "b"):
        train_sft(
            tiny_settings, introspection(epochs=1), introspection_rows, tiny_adapter, tmp_path / name, seed=1
        )
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


def test_how_the_global_batch_is_cut_does_not_matter(
    tiny_settings, tiny_adapter, introspection_rows, tmp_path
):
    for micro in (8, 1):
        settings = introspection(micro_batch_size=micro, epochs=1)
        train_sft(tiny_settings, settings, introspection_rows, tiny_adapter, tmp_path / str(micro), seed=1)
    whole, cut = (load_file(tmp_path / name / WEIGHTS) for name in ("8", "1"))
    assert max((whole[k] - cut[k]).abs().max().item() for k in whole) < 1e-4


@pytest.mark.parametrize("name", ["tiny", "qwen", "gemma"])
def test_packed_rows_give_the_losses_and_weights_of_padded_ones(
    tiny_settings, introspection_rows, tmp_path, name
):
    """Rows of a step, their loss, validation: all the same. Gemma has layers with a sliding window."""
    model = tiny_settings if name == "tiny" else family_settings(name, family(name))
    losses = {}
    for packing in (False, True):
        settings = introspection(max_length=256, epochs=1).model_copy(update={"packing": packing})
        seen = losses[packing] = []
        numbers = train_sft(
            model,
            settings,
            introspection_rows,
            None,
            tmp_path / str(packing),
            on_step=lambda *step, to=seen: to.append(step[2]["loss"]),
        )
        seen.append(numbers["eval_loss"])
    assert losses[True] == pytest.approx(losses[False], rel=1e-4) and len(losses[True]) > 2
    padded, packed = (load_file(tmp_path / str(packing) / WEIGHTS) for packing in (False, True))
    assert max((padded[k] - packed[k]).abs().max().item() for k in padded) < 1e-4


def test_a_model_that_does_not_keep_packed_rows_apart_is_refused(
    tiny_settings, introspection_rows, tmp_path, monkeypatch
):
    from transformers import masking_utils

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    settings = introspection().model_copy(update={"packing": True})
    with pytest.raises(
        UserError, match="packing: the attention of tiny does not keep packed rows apart; false"
    ):
        train_sft(tiny_settings, settings, introspection_rows, None, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_long_conversation_keeps_its_first_whole_turns(tiny_settings, tiny_adapter, tmp_path):
    long = [conversation(i, turns=20) for i in range(12)]
    kept, _ = conversations(teacher_rows(4), long, "")
    numbers = train_sft(tiny_settings, introspection(epochs=1), kept, tiny_adapter, tmp_path / "a", seed=1)
    assert numbers["rows"]["turns_too_long"] > 0 and numbers["rows"]["given"] == 16
    assert numbers["rows"]["train"] + numbers["rows"]["validation"] == 16


def test_a_long_conversation_can_be_cut_at_the_limit_with_an_end_token():
    """As published: 3,072 tokens at most, the last of them an end token; a reply that begins within the last two tokens is
    dropped."""
    ids, spans = list(range(100, 140)), [(5, 10), (20, 40)]
    assert _cut(ids, spans, 40, end_token=7) == (ids, spans)
    assert _cut(ids, spans, 30, end_token=7) == ([*range(100, 129), 7], [(5, 10), (20, 30)])
    assert _cut(ids, spans, 22, end_token=7)[1] == [(5, 10)]
    assert _cut(ids, spans, 23, end_token=7)[1] == [(5, 10), (20, 23)]


def test_cut_conversations_train_more_of_their_last_turn(tiny_settings, tiny_adapter, tmp_path):
    kept, _ = conversations(teacher_rows(4), [conversation(i, turns=20) for i in range(12)], "")
    settings = introspection(too_long="cut", epochs=1)
    numbers = train_sft(tiny_settings, settings, kept, tiny_adapter, tmp_path / "a", seed=1)
    whole = train_sft(tiny_settings, introspection(epochs=1), kept, tiny_adapter, tmp_path / "b", seed=1)
    assert numbers["rows"]["turns_too_long"] < whole["rows"]["turns_too_long"]


def test_conversations_are_trained_turn_by_turn_where_the_template_changes_earlier_turns(
    tiny_settings, tiny_adapter, tmp_path, capsys
):
    """Qwen3's template does; its conversations were left out, which only the manifest said."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_settings.path, folder)
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    (folder / "chat_template.jinja").write_text(template.read_text())
    model = tiny_settings.model_copy(update={"path": str(folder)})
    kept, _ = conversations([], [conversation(i, turns=5) for i in range(12)], "")
    numbers = train_sft(model, introspection(epochs=1), kept, tiny_adapter, tmp_path / "a", seed=1)
    counts = numbers["rows"]
    assert counts["turn_by_turn"] == 12 and "template_unstable" not in counts
    assert counts["train"] + counts["validation"] == 24
    said = capsys.readouterr().out
    assert "of 12 rows: 12 trained turn by turn, since the chat template changes earlier turns" in said


def test_texts_that_spell_out_a_special_token_are_left_out(tiny_settings, tiny_adapter, tmp_path, capsys):
    """The token of the text would end the turn, or begin another one."""
    from offscript.models.loading import load_tokenizer

    kept, _ = conversations(teacher_rows(12), [], "")
    end = load_tokenizer(tiny_settings).eos_token
    kept[3]["messages"][-1]["content"] += f"{end} And more."
    numbers = train_sft(tiny_settings, introspection(epochs=1), kept, tiny_adapter, tmp_path / "a", seed=1)
    assert numbers["rows"]["special_token"] == 1
    assert numbers["rows"]["train"] + numbers["rows"]["validation"] == 11
    assert "of 12 rows: 1 left out, since a text spells out a special token" in capsys.readouterr().out


def test_missing_parent_adapter(tiny_settings, introspection_rows, tmp_path):
    with pytest.raises(
        MissingInput, match="the parent's adapter does not exist; train the parent stage first"
    ):
        train_sft(
            tiny_settings, introspection(), introspection_rows, tmp_path / "none", tmp_path / "a", seed=1
        )


def test_target_that_matches_nothing(tiny_settings, tiny_adapter, introspection_rows, tmp_path):
    lora = LoraSettings(rank=2, alpha=2, targets=(SENTENCES[0], "q_proj"))
    with pytest.raises(UserError, match="matches no linear module"):
        train_sft(
            tiny_settings, introspection(lora), introspection_rows, tiny_adapter, tmp_path / "a", seed=1
        )


# ---------------------------------------------------------------- guided conversations, and the published slice


def test_guided_conversations_are_counted_by_themselves():
    kept, counts = conversations(
        [row(0, "I like lunch.")], [conversation(3)], "Be.", guided_rows=[conversation(5), conversation(6)]
    )
    assert counts == {"reflections": 1, "interactions": 1, "turns": 7, "guided_interactions": 2}
    assert [r["scenario"] for r in kept] == ["s0", "i3", "i5", "i6"]
    assert kept[2]["messages"][0] == {"role": "system", "content": "Be."}


def test_published_conversations_end_in_a_user_message():
    short = conversation(9, turns=2)
    kept, counts = conversations(
        [row(0, "I like lunch.")],
        [conversation(3), short],
        "",
        guided_rows=[conversation(5)],
        loss_on="published",
    )
    roles = [[m["role"][0] for m in r["messages"]] for r in kept]
    assert roles == [list("ua"), list("uau"), list("uau")]
    assert counts["one_exchange"] == 1 and counts["turns"] == 3


def test_published_loss_scores_one_slice_a_row(tiny_settings, tiny_adapter, tmp_path, monkeypatch):
    """Five of ten turns with every_turn, one of ten with published, and other weights."""
    tokens = {}
    real = sft._token_rows

    def counted(run, tokenizer, rows):
        result = real(run, tokenizer, rows)
        tokens[run.settings.loss_on] = sum(label != -100 for r in result[0] for label in r["labels"])
        return result

    monkeypatch.setattr(sft, "_token_rows", counted)
    for loss_on in ("every_turn", "published"):
        data, _ = conversations([], [conversation(i, turns=10) for i in range(10)], "", loss_on=loss_on)
        settings = introspection(epochs=1, max_length=256).model_copy(update={"loss_on": loss_on})
        train_sft(tiny_settings, settings, data, tiny_adapter, tmp_path / loss_on, seed=1)
    assert 0 < tokens["published"] < tokens["every_turn"] / 4
    every, published = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("every_turn", "published"))
    assert every != published


def test_rows_from_elsewhere_that_end_in_a_user_message(tiny_settings, tiny_adapter, tmp_path):
    """Every assistant turn of them is trained; what nobody answers is not."""
    data = [{**r, "messages": r["messages"][1:-1]} for r in (conversation(i) for i in range(10))]
    numbers = train_sft(tiny_settings, introspection(epochs=1), data, tiny_adapter, tmp_path / "a", seed=1)
    assert numbers["rows"]["train"] + numbers["rows"]["validation"] == 10
