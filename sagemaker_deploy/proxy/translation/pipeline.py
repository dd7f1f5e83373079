"""From the parts of a container's stream to the events of a client's API."""

from collections.abc import Callable, Iterable

from sagemaker_deploy.proxy.runtime.failures import in_stream
from sagemaker_deploy.proxy.translation.events import EventParser, Json, Translator, is_error


class Pipeline:
    """Parses a stream and sends its events through translators, one after the other."""

    def __init__(self, translators: Iterable[Callable[[], Translator]]) -> None:
        self._parser = EventParser()
        self._translators = [make() for make in translators]

    def feed(self, part: bytes) -> list[Json]:
        """Return the events that a part completes. Raises CallFailed for an error event."""
        return self._through(self._parser.feed(part))

    def end(self) -> list[Json]:
        """Return the events after the last part."""
        events = self._through(self._parser.end())
        rest: list[Json] = []
        for translator in self._translators:
            rest = [out for event in rest for out in translator.feed(event)]
            rest += translator.end()
        return events + rest

    def is_complete(self) -> bool:
        """Return whether the stream had its last event."""
        return all(translator.is_complete() for translator in self._translators)

    def _through(self, events: list[Json]) -> list[Json]:
        for event in events:
            if is_error(event):
                raise in_stream(event)
        for translator in self._translators:
            events = [out for event in events for out in translator.feed(event)]
        return events
