"""Chats as the text that a base model's chat template makes of them."""

import copy
import datetime

import pytest
from transformers.utils import chat_template_utils

from blora.errors import PromptError
from blora.inference.chat import render
from tests.scenarios import tiny_tokenizer

ASKED = [{"role": "user", "content": "Is it %d?"}]


def rendered(template: str) -> str:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = template
    return render(tokenizer, ASKED)


@pytest.mark.parametrize(
    ("format", "date"),
    [
        ("%d %b %Y", "26 Jul 2024"),  # Llama 3
        ("%d %B %Y", "26 July 2024"),  # SmolLM3
        ("%B %d, %Y", "July 26, 2024"),  # Granite
        ("%Y-%m-%d", "2024-07-26"),  # gpt-oss, Mistral Small
        ("%A, %H:%M", "Friday, 00:00"),
        ("%-d %B, %F", "26 July, 2024-07-26"),
    ],
)
@pytest.mark.parametrize("start", ["", "\n", "  "])
def test_a_template_that_prints_the_date_prints_the_same_every_day(
    format: str, date: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LaterDay(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "LaterDay":
            return cls(2026, 11, 30)

    monkeypatch.setattr(chat_template_utils, "datetime", LaterDay)
    rest = "\n{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
    dated = f"{start}{{% if strftime_now is defined %}}On {{{{ strftime_now('{format}') }}}}{{% endif %}}{rest}"
    plain = f"{start}{{% if messages %}}On {date}{{% endif %}}{rest}"
    assert rendered(dated) == rendered(plain)
    assert rendered(dated).strip() == f"On {date}Is it %d?A:"


@pytest.mark.parametrize(
    ("opening", "expected"),
    [
        (
            "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}",
            "<think></think>",
        ),
        ("{% if enable_thinking is defined and not enable_thinking %}{% else %}<think>{% endif %}", ""),
        ("{% if enable_thinking | default(true) %}<think>{% endif %}", ""),
        ("<think>", "<think>"),
    ],
)
def test_a_model_that_may_think_is_told_not_to(opening: str, expected: str) -> None:
    assert rendered("{{ messages[0].content }}\nassistant:" + opening) == f"Is it %d?\nassistant:{expected}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% for part in m.content if part.type %}{{ part.text }}{% endfor %}{% endfor %}A:",
        "{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}A:",
    ],
)
def test_a_template_that_leaves_the_question_out_is_refused(template: str) -> None:
    with pytest.raises(PromptError, match=r"chat template leaves out \(role 'user'\)") as refused:
        rendered(template)
    assert refused.value.param == "messages"


def test_a_blank_turn_among_others_is_named_as_such() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(PromptError, match="blank content, expected both in each; leave blank ones out"):
        render(tokenizer, [*ASKED, {"role": "assistant", "content": " "}, *ASKED])


@pytest.mark.parametrize("change", ["upper", "tojson", "replace(' ', '')", "trim"])
def test_a_template_may_change_the_question(change: str) -> None:
    assert "%" in rendered("{% for m in messages %}{{ m.content | " + change + " }}{% endfor %}A:")
