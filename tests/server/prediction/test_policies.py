"""Calibrated policies and prediction sets: the policy in force, and requests without a guarantee."""

from dataclasses import replace
from typing import Any

import pytest

from blora.config import PromptConfig
from blora.decision.abstention import Policy
from blora.server.prediction.policies import _same_choices
from tests.server.calibrations import calibration
from tests.server.decision_models import URGENT, predicate
from tests.server.fakes import CHOICES, OPEN_DIGEST, TRIAGE_DIGEST, FakeEngine, Running, handle, running
from tests.server.monitoring.test_drift import GATED
from tests.server.prediction.test_predictor import ask

SEVERAL = "sha256:" + "4" * 64
DEFAULT = {"min_confidence": 0.9, "target_risk": 0.05, "source": "adapter"}


@pytest.fixture
def engine() -> FakeEngine:
    """`triage` is calibrated and has its owner's policy too; `open` and `several` are calibrated without fixed labels."""
    return FakeEngine(
        handles=(
            handle(
                "triage",
                TRIAGE_DIGEST,
                choices=CHOICES,
                policy=Policy(min_confidence=0.3),
                calibration=calibration(TRIAGE_DIGEST),
            ),
            handle("open", OPEN_DIGEST, calibration=calibration(OPEN_DIGEST, most_choices=4)),
            handle("several", SEVERAL, calibration=calibration(SEVERAL, fewest_choices=3, most_choices=4)),
            handle("plain", "sha256:" + "3" * 64, choices=CHOICES),
        )
    )


async def refusal(server: Running, **fields: Any) -> dict[str, Any]:
    """Return the error of a request that must get 422."""
    response = await server.client.post("/v1/predict", json=fields)
    assert response.status_code == 422, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


async def test_the_calibrated_level_comes_before_the_owners_thresholds(server: Running) -> None:
    answered = await ask(server, prompt="p=0.9 x")
    assert (answered["answer"], answered["policy"]) == ("billing", DEFAULT)
    withheld = await ask(server, prompt="p=0.89 x")
    assert (withheld["answer"], withheld["policy"]) == (None, DEFAULT)
    assert withheld["abstain_reasons"] == [{"reason": "low_confidence", "value": pytest.approx(0.89), "threshold": 0.9}]


async def test_a_target_brings_its_own_threshold(server: Running) -> None:
    answer = await ask(server, prompt="p=0.6 x", policy={"target_risk": 0.2})
    assert answer["policy"] == {"max_predictive_entropy": 0.7, "target_risk": 0.2, "source": "request"}
    assert answer["abstain_reasons"][0]["reason"] == "high_predictive_entropy"
    same = await ask(server, prompt="p=0.9 x", policy={"target_risk": 0.05})
    assert same["policy"] == {**DEFAULT, "source": "request"}


async def test_thresholds_of_the_request_decide_as_ever(server: Running) -> None:
    answer = await ask(server, prompt="p=0.6 x", policy={"min_confidence": 0.5}, n_samples=2, seed=9)
    assert (answer["answer"], answer["policy"]) == ("billing", {"min_confidence": 0.5, "source": "request"})


@pytest.mark.parametrize("target", [0.01, 0.1, 0.5])
async def test_a_target_that_is_not_proved_is_refused_with_those_that_are(server: Running, target: float) -> None:
    error = await refusal(server, prompt="x", policy={"target_risk": target})
    assert (error["code"], error["param"]) == ("not_calibrated", "policy.target_risk")
    assert f"target_risk {target:g} is not proved" in error["message"]
    assert "It is proved for 0.05, 0.2: " in error["message"]


async def test_a_target_of_an_adapter_that_is_not_calibrated_is_refused(server: Running) -> None:
    error = await refusal(server, adapter="plain", prompt="x", policy={"target_risk": 0.05})
    assert (error["code"], error["param"]) == ("not_calibrated", "policy.target_risk")
    assert "send thresholds" in error["message"]


OTHERWISE = [("n_samples", 2), ("n_samples", 5), ("seed", 1), ("scoring", "label"), ("choices", ["billing", "other"])]
AS_EVER = [
    ("n_samples", 4),
    ("seed", 0),
    ("scoring", "text"),
    ("choices", list(CHOICES)),
    ("return_samples", True),
]


@pytest.mark.parametrize(("field", "value"), OTHERWISE)
@pytest.mark.parametrize("policy", [None, {"target_risk": 0.2}])
async def test_a_guarantee_does_not_stretch_to_other_requests(
    server: Running, field: str, value: Any, policy: dict[str, float] | None
) -> None:
    error = await refusal(server, prompt="p=0.9 x", policy=policy, **{field: value})
    assert (error["code"], error["param"]) == ("not_calibrated", field)
    assert f"leave {field} out, or send policy thresholds" in error["message"]


MESSAGES = [{"role": "user", "content": "p=0.9 x"}]
WORDS = [f"word {index}" for index in range(64)]
# Of another kind than the rows that an adapter was calibrated with: the request, the field, what the message says.
OTHER_KINDS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"messages": MESSAGES},
        "messages",
        "a question as messages, but adapter 'triage' was calibrated with questions as prompt",
    ),
    (
        {"adapter": "open", "prompt": "p=0.9 x", "choices": WORDS[:5]},
        "choices",
        "The request has 5 choices, but adapter 'open' was calibrated with 2 to 4 choices",
    ),
    (
        {"adapter": "open", "prompt": "p=0.9 x", "choices": WORDS},
        "choices",
        "64 choices, but adapter 'open' was calibrated with 2 to 4 choices",
    ),
    (
        {"adapter": "several", "prompt": "p=0.9 x", "choices": WORDS[:2]},
        "choices",
        "The request has 2 choices, but adapter 'several' was calibrated with 3 to 4 choices",
    ),
    ({"adapter": "open", "messages": MESSAGES, "choices": WORDS[:2]}, "messages", "ask it as prompt, or send policy"),
]


@pytest.mark.parametrize(("request_of", "field", "message"), OTHER_KINDS)
@pytest.mark.parametrize("policy", [None, {"target_risk": 0.2}])
async def test_nor_to_questions_of_another_kind(
    server: Running, request_of: dict[str, Any], field: str, message: str, policy: dict[str, float] | None
) -> None:
    error = await refusal(server, policy=policy, **request_of)
    assert (error["code"], error["param"]) == ("not_calibrated", field)
    assert message in error["message"]


@pytest.mark.parametrize("request_of", [request_of for request_of, _, _ in OTHER_KINDS])
async def test_questions_of_another_kind_are_answered_under_thresholds_of_their_own(
    server: Running, request_of: dict[str, Any]
) -> None:
    answer = await ask(server, policy={"min_confidence": 0.5}, **request_of)
    assert (answer["policy"]["source"], answer["prediction_set"]) == ("request", None)
    assert "target_risk" not in answer["policy"]


@pytest.mark.parametrize(("adapter", "n_choices"), [("open", 2), ("open", 3), ("open", 4), ("several", 3)])
async def test_any_number_of_choices_that_was_seen_is_covered(server: Running, adapter: str, n_choices: int) -> None:
    answer = await ask(server, adapter=adapter, prompt="p=0.9 x", choices=WORDS[:n_choices])
    assert (answer["policy"], answer["prediction_set"]) == (DEFAULT, ["word 0"])


async def test_messages_are_covered_where_they_were_seen_and_prompts_where_these_were() -> None:
    forms = {"chat": ("messages",), "both": ("messages", "prompt")}
    handles = tuple(
        handle(name, TRIAGE_DIGEST, choices=CHOICES, calibration=calibration(TRIAGE_DIGEST, forms=seen))
        for name, seen in forms.items()
    )
    async with running(FakeEngine(handles=handles), default_adapter=None) as server:
        for name in forms:
            assert (await ask(server, adapter=name, messages=MESSAGES))["policy"] == DEFAULT
        assert (await ask(server, adapter="both", prompt="p=0.9 x"))["policy"] == DEFAULT
        error = await refusal(server, adapter="chat", prompt="p=0.9 x")
        assert (error["code"], error["param"]) == ("not_calibrated", "prompt")
        assert "a question as prompt, but adapter 'chat' was calibrated with questions as messages" in error["message"]


@pytest.mark.parametrize(("field", "value"), AS_EVER)
async def test_saying_what_holds_anyway_changes_nothing(server: Running, field: str, value: Any) -> None:
    answer = await ask(server, prompt="p=0.9 x", **{field: value})
    assert (answer["policy"], answer["prediction_set"]) == (DEFAULT, ["billing"])


async def test_the_adapters_choices_in_another_order_are_its_own(server: Running) -> None:
    turned = list(reversed(CHOICES))
    answer = await ask(server, prompt="p=0.9 x", choices=turned)
    assert (answer["policy"], answer["prediction_set"]) == (DEFAULT, turned[:1])


async def test_choices_in_another_order_are_others_where_the_model_reads_a_list_of_them() -> None:
    own = handle("triage", TRIAGE_DIGEST, choices=CHOICES, calibration=calibration(TRIAGE_DIGEST))
    listed = replace(own, config=replace(own.config, prompt=replace(own.config.prompt, scoring="label")))
    async with running(FakeEngine(handles=(listed,))) as server:
        assert (await ask(server, prompt="p=0.9 x", choices=list(CHOICES)))["policy"] == DEFAULT
        error = await refusal(server, prompt="p=0.9 x", choices=list(reversed(CHOICES)))
    assert (error["code"], error["param"]) == ("not_calibrated", "choices")


def test_choices_that_only_look_like_the_adapters_are_its_own_where_no_model_reads_them() -> None:
    choices = ["bill\u200bing", *CHOICES[1:]]
    assert _same_choices(choices, PromptConfig(choices=CHOICES, readout="linear"))
    assert not _same_choices(choices, PromptConfig(choices=CHOICES))


async def test_the_refusal_of_other_choices_lists_those_of_the_adapter(server: Running) -> None:
    error = await refusal(server, prompt="p=0.9 x", choices=[choice.upper() for choice in CHOICES])
    assert f"calibrated with its fixed ones, {', '.join(map(repr, CHOICES))}, and" in error["message"]
    many = tuple(f"word  {index}" for index in range(10))
    own = handle("triage", TRIAGE_DIGEST, choices=many, calibration=calibration(TRIAGE_DIGEST))
    async with running(FakeEngine(handles=(own,))) as words:
        error = await refusal(words, prompt="p=0.9 x", choices=[*many[:9], "another"])
    assert "its fixed ones, 'word  0', 'word  1'," in error["message"]
    assert "'word  7' and 2 more, and the guarantee" in error["message"]


async def test_an_adapter_that_is_not_calibrated_takes_any_request(server: Running) -> None:
    answer = await ask(server, adapter="plain", prompt="p=0.9 x", n_samples=2, seed=1, scoring="label")
    assert (answer["policy"], answer["prediction_set"]) == (None, None)


# Scores that few draws do not define

INFORMED = {"max_mutual_information": 0.01}


async def test_a_threshold_on_the_mutual_information_of_one_draw_is_refused() -> None:
    owned = handle("triage", TRIAGE_DIGEST, choices=CHOICES, policy=Policy(**INFORMED))
    async with running(FakeEngine(handles=(owned,))) as server:
        for policy in (None, INFORMED):
            error = await refusal(server, prompt="p=0.9 x", n_samples=1, policy=policy)
            assert (error["code"], error["param"]) == ("invalid_value", "n_samples")
            assert "got n_samples 1 under a policy with max_mutual_information, expected at least 2" in error["message"]
            assert (await ask(server, prompt="p=0.9 x", n_samples=2, policy=policy))["answer"] == "billing"
        other = await ask(server, prompt="p=0.9 x", n_samples=1, policy={"min_confidence": 0.5})
        assert other["answer"] == "billing"


async def test_without_a_posterior_the_advice_is_another_policy() -> None:
    owned = handle("triage", TRIAGE_DIGEST, choices=CHOICES, policy=Policy(**INFORMED))
    plain = replace(owned, config=replace(owned.config, posterior=replace(owned.config.posterior, method="lora")))
    async with running(FakeEngine(handles=(plain,))) as server:
        error = await refusal(server, prompt="p=0.9 x")
    assert error["param"] == "policy.max_mutual_information"
    assert error["message"].endswith("at least 2 different draws: send policy thresholds without it")


OTHER_SHAPES = [
    ("decisions", {"input": "p=0.9 f=1 x", "questions": [predicate(name="urgent")]}),
    ("systemone", {"state": "p=0.9 f=1 x", "questions": {"urgent": {"type": "noul", "instructions": "Is it?"}}}),
]


@pytest.mark.parametrize(("path", "fields"), OTHER_SHAPES)
async def test_a_question_in_another_shape_is_refused_for_the_same_lack_of_draws(
    path: str, fields: dict[str, Any]
) -> None:
    one_draw = handle("triage", TRIAGE_DIGEST, choices=("true", "false"), question=URGENT, n_samples=1)
    async with running(FakeEngine(handles=(one_draw,))) as server:
        asked = {"model": "triage", **fields}
        assert (await server.client.post(f"/v1/{path}", json=asked)).status_code == 200
        refused = await server.client.post(f"/v1/{path}", json={**asked, "policy": INFORMED})
        assert refused.status_code == 422
        assert "expected at least 2 different draws" in refused.text


# Thresholds that no familiarity can fail

FAMILIAR = GATED.familiarity
assert FAMILIAR is not None
LEAST = 1 / (len(FAMILIAR.reference) + 1)  # of GATED itself, whose gate has more reference rows, it is 0.01
IDLE = [LEAST, LEAST + 5e-7, LEAST / 2, 1e-9]
FAR = f"p=0.9 f={LEAST}"


@pytest.mark.parametrize("limit", IDLE)
async def test_a_threshold_that_no_familiarity_can_fail_is_refused(limit: float) -> None:
    plain = handle("triage", TRIAGE_DIGEST, choices=CHOICES, familiarity=FAMILIAR)
    async with running(FakeEngine(handles=(plain,))) as server:
        error = await refusal(server, prompt=FAR, policy={"min_familiarity": limit})
    assert (error["code"], error["param"]) == ("invalid_value", "policy.min_familiarity")
    assert error["message"].startswith(
        f"got min_familiarity {limit:g} with 20 reference rows, expected more than 0.04762, because no familiarity "
        "among 20 rows is below 1 / 21: raise it, set it to 0 "
    )


@pytest.mark.parametrize(("limit", "withheld"), [(0.0, False), (LEAST + 2e-6, True), (0.05, True), (1.0, True)])
async def test_any_other_threshold_on_the_familiarity_decides(limit: float, withheld: bool) -> None:
    plain = handle("triage", TRIAGE_DIGEST, choices=CHOICES, familiarity=FAMILIAR)
    async with running(FakeEngine(handles=(plain,))) as server:
        assert (await ask(server, prompt=FAR, policy={"min_familiarity": limit}))["abstained"] == withheld


async def test_the_reference_rows_of_the_gate_in_force_are_those_that_count() -> None:
    async with running(FakeEngine(handles=(GATED,))) as server:
        assert (await ask(server, prompt="p=0.95 f=0.01", policy={"min_familiarity": 0.011}))["abstained"]
        assert (await ask(server, prompt="p=0.95 f=0.01"))["abstained"]  # by the calibrated gate
        assert (await server.client.get(f"/v1/adapters/{GATED.name}")).json()["least_familiarity"] == 0.01
        error = await refusal(server, prompt="p=0.95 f=0.01", policy={"min_familiarity": 0.01})
    assert "with 99 reference rows, expected more than 0.010001," in error["message"]


async def test_questions_that_bring_no_policy_are_answered_under_an_owners_threshold_that_none_can_fail() -> None:
    owned = handle("triage", TRIAGE_DIGEST, choices=CHOICES, familiarity=FAMILIAR, policy=Policy(min_familiarity=LEAST))
    async with running(FakeEngine(handles=(owned,))) as server:
        assert (await ask(server, prompt=FAR))["answer"] == "billing"


@pytest.mark.parametrize(("path", "fields"), OTHER_SHAPES)
async def test_a_question_in_another_shape_is_refused_for_a_threshold_that_none_can_fail(
    path: str, fields: dict[str, Any]
) -> None:
    plain = handle("triage", TRIAGE_DIGEST, choices=("true", "false"), question=URGENT, familiarity=FAMILIAR)
    async with running(FakeEngine(handles=(plain,))) as server:
        asked = {"model": "triage", **fields}
        for limit in (0.0, 0.05):
            body = {**asked, "policy": {"min_familiarity": limit}}
            assert (await server.client.post(f"/v1/{path}", json=body)).status_code == 200
        refused = await server.client.post(f"/v1/{path}", json={**asked, "policy": {"min_familiarity": LEAST}})
    assert refused.status_code == 422
    assert "with 20 reference rows, expected more than 0.04762," in refused.text


# Prediction sets


@pytest.mark.parametrize(
    ("first", "members"),
    [
        (0.9, ["billing"]),
        (0.6, ["billing", "technical", "account"]),
        (0.61, ["billing"]),
        (0.1, ["technical", "account"]),
    ],
)
async def test_a_set_holds_what_is_probable_enough_in_the_order_of_the_choices(
    server: Running, first: float, members: list[str]
) -> None:
    # The quantile is 0.8: a choice of probability 0.2 or more belongs to the set.
    answer = await ask(server, prompt=f"p={first} x", policy={"min_confidence": 0})
    assert answer["prediction_set"] == members


async def test_a_set_is_there_when_the_answer_is_withheld(server: Running) -> None:
    answer = await ask(server, prompt="p=0.7 x")
    assert (answer["answer"], answer["prediction_set"]) == (None, ["billing"])


async def test_the_leader_is_in_the_set_however_improbable() -> None:
    sure = handle("sure", TRIAGE_DIGEST, choices=CHOICES, calibration=calibration(TRIAGE_DIGEST, quantile=0.05))
    async with running(FakeEngine(handles=(sure,)), default_adapter=None) as server:
        assert (await ask(server, prompt="p=0.5 x"))["prediction_set"] == ["billing"]


async def test_a_set_of_an_answer_with_guesses_holds_every_choice(server: Running) -> None:
    answer = await ask(server, prompt="p=0.9 g=0.3 x", policy={"min_confidence": 0})
    # Of the others each has less than the 0.2 that a choice needs to belong to the set.
    assert [entry["probability"] for entry in answer["probabilities"]] == pytest.approx([0.73, 0.135, 0.135])
    assert answer["prediction_set"] == list(CHOICES)


@pytest.mark.parametrize(("field", "value"), OTHERWISE)
async def test_there_is_no_set_where_nothing_is_proved(server: Running, field: str, value: Any) -> None:
    answer = await ask(server, prompt="p=0.9 x", policy={"min_confidence": 0}, **{field: value})
    assert answer["prediction_set"] is None


async def test_without_fixed_labels_the_choices_of_each_question_are_covered(server: Running) -> None:
    answer = await ask(server, adapter="open", prompt="p=0.75 x", choices=["yes", "no"], policy={"target_risk": 0.2})
    assert (answer["answer"], answer["prediction_set"]) == ("yes", ["yes", "no"])


async def test_in_a_batch_each_input_is_judged_alone(server: Running) -> None:
    inputs = [{"prompt": "p=0.9 x"}, {"prompt": "p=0.9 x", "seed": 3}, {"prompt": "p=0.9 x", "policy": None}]
    body = {"inputs": inputs, "policy": {"target_risk": 0.2}}
    first, second, third = (await server.client.post("/v1/predict", json=body)).json()["predictions"]
    assert first["policy"]["target_risk"] == 0.2
    assert second["error"]["param"] == "seed"
    assert third["policy"] == DEFAULT
