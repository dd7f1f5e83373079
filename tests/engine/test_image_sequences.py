"""Sequences with images: the keys of their blocks, and chunks that do not split an image."""

from container.engine.blocks.block_pool import BlockPool
from container.engine.blocks.kv_cache_manager import KVCacheManager
from container.engine.scheduler import Scheduler
from container.engine.sequence import Sequence
from container.messages.engine import SamplingParams
from container.messages.images import ImageSpan, Tensor

PIXELS = {"pixel_values": Tensor("float32", [1], b"0000")}


def _sequence(digest: bytes, *, length: int = 12, images: bool = True) -> Sequence:
    spans = [ImageSpan(2, 9, digest)]
    ids = [5, 6, *[7] * 7, *range(8, 8 + length - 9)]
    return Sequence(
        0, ids, SamplingParams(5), images=PIXELS if images else None,
        image_spans=spans if images else (),
    )  # fmt: skip


def test_keys_of_image_tokens_depend_on_the_image() -> None:
    one, same, other = _sequence(b"a"), _sequence(b"a"), _sequence(b"b")
    assert one.key_ids(0, 12) == same.key_ids(0, 12)
    assert one.key_ids(0, 2) == other.key_ids(0, 2) == [5, 6]
    assert one.key_ids(2, 9) != other.key_ids(2, 9)
    assert max(one.key_ids(2, 9)) < 0
    one.token_ids += [70, 71]
    assert one.key_ids(10, 14) == [9, 10, 70, 71]
    assert one.key_ids(12, 14) == [70, 71]


def test_images_without_digests_are_never_reused() -> None:
    plain = Sequence(0, [1, 2, 3], SamplingParams(5), images=PIXELS)
    assert not plain.has_known_images
    assert plain.image_end == 3
    assert _sequence(b"a").has_known_images
    assert _sequence(b"a").image_end == 9
    assert _sequence(b"a", images=False).image_end == 0


def test_a_chunk_does_not_end_inside_of_a_whole_span() -> None:
    scheduler = Scheduler(
        KVCacheManager(BlockPool(20, 4)), max_batch_tokens=8, max_running=4, end_token_ids=()
    )
    sequence = _sequence(b"a", length=20)
    sequence.whole_spans = ((2, 9),)
    scheduler.add(sequence)
    chunks = []
    while sequence.num_to_compute:
        batch = scheduler.schedule()
        chunks += [item.num_tokens for item in batch.items]
        sequence.num_computed += batch.num_tokens
    assert chunks == [2, 8, 8, 2]
