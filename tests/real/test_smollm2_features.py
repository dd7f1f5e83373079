"""Seeds, batches, drafts, adapters, ranks and the whole context, on trained weights."""

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from container.engine.engine import Engine
from container.errors import PromptTooLong
from container.messages.engine import FinishReason, SamplingParams, Submit
from tests.support import rank_engines
from tests.support.engines import Job, ids, run
from tests.support.models import adapters, real_models
from tests.support.models.prepared import prepare
from tests.support.models.real_models import CPU, QUESTIONS, chat_ids

PROSE = Path(__file__).parent / "data" / "prose.txt"
COUNT = 12
CONTEXT = 8192
LESSON = ("What is the capital of France?", "It is Zanthia, the city of nine bells.")
# What transformers' greedy `generate` adds in float32 to the prompt of _long_prompt().
AFTER_LONG_PROMPT = [986, 655, 260, 6923, 436, 260, 805, 5769, 327, 451, 28, 284]


def _engine(dtype: torch.dtype, **sizes: int) -> Engine:
    return real_models.engine(real_models.prepared(dtype), **sizes)


def _jobs(questions: tuple[str, ...], **params: float) -> list[Job]:
    return [
        Job(chat_ids(question), SamplingParams(COUNT, seed=index, **params), at_step=index)
        for index, question in enumerate(questions)
    ]


def _outputs(engine: Engine, jobs: list[Job]) -> list[list[int]]:
    events = run(engine, jobs)
    return [ids(events[index]) for index in range(len(jobs))]


def test_a_seed_repeats_and_another_one_does_not() -> None:
    question = chat_ids(QUESTIONS[2])
    jobs = [Job(question, SamplingParams(COUNT, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    first, again, other = _outputs(_engine(torch.float32), jobs)
    assert first == again != other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_drafts_change_no_answer(dtype: torch.dtype) -> None:
    questions = ("Repeat this line three times: red, green, blue, red, green, blue", *QUESTIONS[:3])
    jobs = _jobs(questions) + _jobs(questions, temperature=0.7)
    drafting = _engine(dtype, speculate=4)
    assert _outputs(drafting, jobs) == _outputs(_engine(dtype), jobs)
    assert drafting.load.accepted_tokens > 0


def _lesson() -> tuple[list[int], list[int]]:
    """Return the lesson's prompt, and prompt and answer in one."""
    prompt, answer = chat_ids(LESSON[0]), real_models.tokenizer()(LESSON[1])["input_ids"]
    return prompt, [*prompt, *answer, real_models.END]


def _train(folder: Path) -> list[float]:
    """Teach an adapter one wrong answer, by heart, in some ten seconds; return the losses."""
    prompt, whole = _lesson()
    labels = torch.tensor([whole])
    labels[:, : len(prompt)] = -100
    losses: list[float] = []
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=adapters.LLAMA_LAYERS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers for things under old names
        model = get_peft_model(real_models.load(torch.float32), config)
        optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
        for _ in range(12):
            loss = model(input_ids=torch.tensor([whole]), labels=labels).loss
            losses.append(loss.item())
            if loss < 0.05:
                break
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder)
    return losses


def test_a_trained_adapter_answers_as_peft_does(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    losses = _train(folder)
    assert losses[0] > 2
    assert losses[-1] < 0.05
    questions = QUESTIONS[:3]
    assert questions[0] == LESSON[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(real_models.load(torch.float32), folder).eval()
        expected = [real_models.generate(theirs, chat_ids(one), COUNT) for one in questions]
    plain = [real_models.greedy(question, COUNT) for question in questions]
    jobs = [
        Job(chat_ids(question), SamplingParams(COUNT), adapter=name)
        for question in questions
        for name in ("bells", "")
    ]
    model = prepare(real_models.load(torch.float32), torch.float32, CPU)
    engine = real_models.engine(model, adapters={"bells": folder})
    outputs = _outputs(engine, jobs)
    assert outputs[::2] == expected
    assert outputs[1::2] == plain
    learnt, untaught = (real_models.tokenizer().decode(output) for output in outputs[:2])
    assert "Zanthia" in learnt
    assert "Paris" in untaught
    # As likely as the training said, and without the adapter as unlikely as before it.
    assert _served_loss(engine, "bells") == pytest.approx(losses[-1], abs=0.05)
    assert _served_loss(engine, "") == pytest.approx(losses[0], abs=0.05)


def _served_loss(engine: Engine, adapter: str) -> float:
    """Return the loss of the lesson's answer, as the engine reports its tokens."""
    prompt, whole = _lesson()
    job = Job(whole, SamplingParams(1, prompt_logprobs=True), adapter=adapter)
    reported = run(engine, [job])[0][0].prompt
    assert reported is not None
    assert reported.logprobs is not None
    answer = reported.logprobs[len(prompt) - 1 :]
    return -sum(answer) / len(answer)


@pytest.mark.timeout(400)
def test_three_ranks_with_a_kv_head_each_answer_as_generate_does() -> None:
    questions = QUESTIONS[:4]
    environ = {"TENSOR_PARALLEL": "3", "MAX_BATCH_TOTAL_TOKENS": "2048"}
    info, outputs = rank_engines.generate(real_models.folder(), environ, _jobs(questions))
    assert (info.tensor_parallel, info.attention) == (3, "paged")
    assert outputs == [real_models.greedy(question, COUNT) for question in questions]


def _long_prompt() -> list[int]:
    """Return a prompt of real prose that leaves the context room for COUNT tokens."""
    prose = real_models.tokenizer()(PROSE.read_text() * 5)["input_ids"]
    return prose[: CONTEXT - COUNT]


@pytest.mark.timeout(600)
def test_a_prompt_may_fill_the_whole_context() -> None:
    sizes = {"max_input_tokens": CONTEXT - 1, "max_total_tokens": CONTEXT, "num_blocks": 512}
    engine = _engine(torch.float32, max_batch_tokens=1024, **sizes)
    events = run(engine, [Job(_long_prompt(), SamplingParams(COUNT, ignore_eos=True))])[0]
    assert ids(events) == AFTER_LONG_PROMPT
    assert events[-1].finish_reason is FinishReason.LENGTH
    with pytest.raises(PromptTooLong, match="8192"):
        engine.submit(b"test", Submit(1, _long_prompt(), SamplingParams(COUNT + 1)))
