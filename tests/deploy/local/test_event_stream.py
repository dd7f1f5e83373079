from botocore.eventstream import EventStreamBuffer

from sagemaker_deploy.local.invocations import event_stream


def _parsed(data: bytes):
    buffer = EventStreamBuffer()
    buffer.add_data(data)
    return [(event.headers, event.payload) for event in buffer]


def test_botocores_parser_reads_a_payload_part() -> None:
    [(headers, payload)] = _parsed(event_stream.payload_part(b"data: \xc3\xa4\n"))
    assert headers[":message-type"] == "event"
    assert headers[":event-type"] == "PayloadPart"
    assert payload == b"data: \xc3\xa4\n"


def test_frames_follow_each_other_without_separators() -> None:
    data = event_stream.payload_part(b"one") + event_stream.payload_part(b"")
    assert [payload for _, payload in _parsed(data)] == [b"one", b""]


def test_an_error_frame_has_its_code_in_the_payload() -> None:
    [(headers, payload)] = _parsed(event_stream.stream_error("StreamBroken", "gone"))
    assert headers[":message-type"] == "exception"
    assert headers[":exception-type"] == "ModelStreamError"
    assert b'"ErrorCode": "StreamBroken"' in payload
