"""Random requests in a game with the engine, and the completions that are expected."""

import random
from collections import Counter, defaultdict
from functools import cache

from container.engine.config import EngineConfig
from container.engine.engine import Engine
from container.messages.engine import (
    FinishReason,
    SamplingParams,
    Submit,
    TokenEvent,
)
from container.messages.images import ImageTensors, Tensor
from tests.engine.simulated_device import (
    END,
    STOP,
    VOCABULARY,
    Completion,
    CountedAdapters,
    Injected,
    SimulatedDevice,
    contents,
    next_token,
)
from tests.support.grammars import ScriptedGrammars

OWNER = b"f"
STEPS = 200  # in which requests come; then all of them end


def expected(submit: Submit, seq_index: int) -> Completion:
    """Return the completion of a sequence and its finish reason; None if its grammar fails."""
    params, ids = submit.params, list(submit.prompt_ids)
    completion: list[int] = []
    reason = None
    while reason is None:
        last = contents([*ids, *completion], int(submit.adapter or 0), submit.images)[-1]
        token = next_token(last, seq_index)
        completion.append(token)
        reason = expected_reason(params, completion)
        goes_on = reason in (None, FinishReason.LENGTH)
        if goes_on and params.grammar == f"fails {len(completion)}":
            return completion[:-1], None
    return completion, reason


def expected_reason(params: SamplingParams, completion: list[int]) -> FinishReason | None:
    if completion[-1] == END and not params.ignore_eos:
        return FinishReason.END_TOKEN
    if completion[-1] in params.stop_token_ids:
        return FinishReason.STOP
    if params.grammar == f"ends {len(completion)}":
        return FinishReason.END_TOKEN
    return FinishReason.LENGTH if len(completion) >= params.max_new_tokens else None


class Client:
    """Knows the unfinished sequences, and compares their tokens with the oracle's."""

    def __init__(self) -> None:
        self.submitted: dict[int, Submit] = {}
        self.unfinished: dict[int, set[int]] = {}
        self.lost: set[int] = set()  # their last tokens may be told or not
        self.received: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self.oracle = cache(lambda request_id, index: expected(self.submitted[request_id], index))

    def ask(self, submit: Submit) -> None:
        self.submitted[submit.request_id] = submit
        self.unfinished[submit.request_id] = set(range(submit.num_sequences))

    def take(self, event: TokenEvent) -> None:
        request_id, seq_index = event.request_id, event.seq_index
        if request_id in self.lost:
            return
        assert seq_index in self.unfinished.get(request_id, ()), "a token after the end"
        received = self.received[request_id, seq_index]
        received.append(event.token_id)
        tokens, reason = self.oracle(request_id, seq_index)
        assert received == tokens[: len(received)]
        assert event.finish_reason is (reason if len(received) == len(tokens) else None)
        if len(received) == 1:
            self._check_scores(event)
        if event.finish_reason is not None:
            self.end(request_id, seq_index)

    def end(self, request_id: int, seq_index: int) -> None:
        left = self.unfinished[request_id]
        left.remove(seq_index)
        if not left:
            del self.unfinished[request_id]

    def fail(self, request_id: int) -> None:
        assert self.submitted[request_id].params.grammar.startswith("fails")
        del self.unfinished[request_id]

    def lose(self, request_id: int) -> None:
        del self.unfinished[request_id]
        self.lost.add(request_id)

    def _check_scores(self, event: TokenEvent) -> None:
        submit = self.submitted[event.request_id]
        if submit.params.prompt_logprobs:
            assert event.prompt is not None
            assert event.prompt.logprobs == [float(i) for i in range(1, len(submit.prompt_ids))]


def random_config(rnd: random.Random, overlaps: bool) -> EngineConfig:
    block_size = rnd.choice([1, 2, 3, 4])
    num_blocks = rnd.randint(40, 130) // block_size
    total = min(num_blocks * block_size, rnd.randint(30, 80))
    return EngineConfig(
        block_size=block_size,
        num_blocks=num_blocks,
        max_batch_tokens=rnd.choice([1, 3, 8, 40]),
        max_running=rnd.randint(1, 6),
        max_input_tokens=total - 1,
        max_total_tokens=total,
        num_slots=rnd.choice([0, 2, 5, 30, 200]),
        speculate=0 if overlaps else rnd.choice([0, 3]),
    )


class RandomRequests:
    """Makes requests whose prompts often begin alike."""

    def __init__(self, rnd: random.Random, max_total: int) -> None:
        self.rnd = rnd
        self.max_total = max_total
        self.texts = [self._ids(max_total) for _ in range(3)]

    def make(self, request_id: int) -> Submit:
        rnd = self.rnd
        prompt = self._prompt(rnd.randint(1, self.max_total - 1))
        return Submit(
            request_id,
            prompt,
            self._params(self.max_total - len(prompt)),
            rnd.choice([1, 1, 1, 2, 3]),
            self._images(),
            adapter=rnd.choice(["", "", "1", "2"]),
            session=rnd.choice(["", "", "a", "b"]),
            session_s=1000.0,
        )

    def _params(self, room: int) -> SamplingParams:
        rnd = self.rnd
        grammar = f"{rnd.choice(['ends', 'fails'])} {rnd.randint(1, 8)}"
        return SamplingParams(
            max_new_tokens=min(room, rnd.choice([1, 2, rnd.randint(1, room)])),
            stop_token_ids=rnd.choice([[], [], [STOP]]),
            ignore_eos=rnd.random() < 0.6,
            prompt_logprobs=rnd.random() < 0.2,
            grammar=grammar if rnd.random() < 0.15 else "",
        )

    def _prompt(self, length: int) -> list[int]:
        text = self.rnd.choice(self.texts)
        shared = length if self.rnd.random() < 0.7 else length // 2
        return text[:shared] + self._ids(length - shared)

    def _ids(self, count: int) -> list[int]:
        return [self.rnd.randrange(VOCABULARY) for _ in range(count)]

    def _images(self) -> ImageTensors:
        if self.rnd.random() > 0.07:
            return {}
        return {"pixels": Tensor("uint8", [1], bytes([self.rnd.randint(1, 2)]))}


class Game:
    """One engine on one device, from its first request to its last."""

    def __init__(self, rnd: random.Random, overlaps: bool) -> None:
        self.rnd = rnd
        self.config = random_config(rnd, overlaps)
        self.device = SimulatedDevice(self.config.block_size, overlaps)
        self.grammars = ScriptedGrammars(lambda: rnd.random() < 0.7)
        self.adapters = CountedAdapters()
        self.engine = Engine(
            self.device,
            self.config,
            end_token_ids=(END,),
            grammars=self.grammars,
            adapters=self.adapters,
        )
        self.requests = RandomRequests(rnd, self.config.max_total_tokens)
        self.client = Client()
        self.tally: Counter[str] = Counter()

    def play(self) -> Counter[str]:
        for _ in range(STEPS):
            self._disturb()
            self._step()
        self._finish()
        load = self.engine.load
        self.tally["preemptions"] += load.preemptions
        self.tally["restored"] += load.restored_tokens
        self.tally["accepted"] += load.accepted_tokens
        return self.tally

    def _disturb(self) -> None:
        """The events between two steps."""
        rnd = self.rnd
        if rnd.random() < 0.35 and len(self.client.unfinished) < 12:
            self._submit()
        if rnd.random() < 0.3:
            self.grammars.finish_one()
        if rnd.random() < 0.01:
            self.device.fails_at = rnd.choice(["execute", "sample", "get_output"])
        if rnd.random() < 0.08 and self.client.unfinished:
            self._abort()
        if rnd.random() < 0.01:
            self._unpin()
        self.engine.scheduler.check_invariants()

    def _submit(self) -> None:
        submit = self.requests.make(len(self.client.submitted))
        self.client.ask(submit)
        self.engine.submit(OWNER, submit)

    def _abort(self) -> None:
        """Abort a request, or one sequence of it."""
        request_id = self.rnd.choice(sorted(self.client.unfinished))
        indexes = sorted(self.client.unfinished[request_id])
        one = self.rnd.choice([None, *indexes])
        self.engine.abort(OWNER, request_id, one)
        for seq_index in indexes if one is None else [one]:
            self.client.end(request_id, seq_index)
        self.tally["aborts"] += 1

    def _unpin(self) -> None:
        """Have the sessions give up what they hold."""
        self.engine.scheduler.kv_cache.pinned.evict_until(self.config.num_blocks)

    def _step(self) -> None:
        try:
            events = self.engine.step()
        except Injected:
            self._recover()
            return
        for _, event in events:
            self.client.take(event)
        for _, request_id, error in self.engine.take_failures():
            if "the model failed" in error.message:
                self.client.lose(request_id)  # the device failed twice while it was alone
            else:
                self.client.fail(request_id)
        self.engine.scheduler.check_invariants()

    def _recover(self) -> None:
        self.device.lose_all()
        self.device.fails_at = ""
        self.engine.recover()
        self.engine.scheduler.check_invariants()
        self.tally["recoveries"] += 1
        self._step()  # tells what was read before the failure

    def _finish(self) -> None:
        """Nothing comes any more, so all that there is comes to its end."""
        for _ in range(20_000):
            if not self.client.unfinished and not self.engine.has_work:
                break
            self.grammars.finish_one()
            self._step()
        assert not self.client.unfinished, "the engine makes no progress"
        self._unpin()
        assert self.engine.load.blocks_used == 0
        assert not any(self.adapters.used.values())
        assert not self.grammars.constraints, "a constraint that nobody has closed"
