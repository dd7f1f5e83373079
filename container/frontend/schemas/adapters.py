"""The body of DJL's adapters API."""

from container.frontend.bodies import Body


class AdapterRequest(Body):
    """POST /adapters; `src` is a folder or a Hub id."""

    name: str
    src: str
    preload: bool = True
    pin: bool = False
