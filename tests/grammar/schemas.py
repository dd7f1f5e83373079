"""Some 340 JSON Schemas of the kinds that applications send: what APIs, forms and logs look like.

Each entity is written once, with the keywords that its domain uses; each shape is a way in which
applications wrap entities (alone, in a page, by reference, as a tagged union, ...).
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 40}
SLUG: Schema = {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+){0,3}$", "maxLength": 30}
COUNT: Schema = {"type": "integer", "minimum": 0}
INDEX: Schema = {"type": "integer", "minimum": 1, "maximum": 1000}
RATIO: Schema = {"type": "number", "minimum": 0, "maximum": 1}
FLAG: Schema = {"type": "boolean"}
DATE: Schema = {"type": "string", "format": "date"}
WHEN: Schema = {"type": "string", "format": "date-time"}
UUID: Schema = {"type": "string", "format": "uuid"}
EMAIL: Schema = {"type": "string", "format": "email"}
IPV4: Schema = {"type": "string", "format": "ipv4"}
HOST: Schema = {"type": "string", "format": "hostname"}
PHONE: Schema = {"type": "string", "pattern": r"^\+[1-9][0-9]{6,14}$"}
CURRENCY: Schema = {"type": "string", "pattern": "^[A-Z]{3}$"}
HEX_COLOUR: Schema = {"type": "string", "pattern": "^#[0-9a-f]{6}$"}
VERSION: Schema = {"type": "string", "pattern": r"^\d{1,3}\.\d{1,3}\.\d{1,3}$"}
MONEY: Schema = {"type": "number", "minimum": 0, "maximum": 100000, "multipleOf": 0.01}
LATITUDE: Schema = {"type": "number", "minimum": -90, "maximum": 90}
LONGITUDE: Schema = {"type": "number", "minimum": -180, "maximum": 180}


def one_of(*values: Any) -> Schema:
    return {"enum": list(values)}


def maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}], "default": None}


def several(schema: Schema, least: int = 0, most: int = 3) -> Schema:
    return {"type": "array", "items": schema, "minItems": least, "maxItems": most}


def entity(optional: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object whose properties are required unless they are named as optional."""
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


ADDRESS = entity(street=NAME, city=NAME, postcode=SLUG, country=CURRENCY, optional=("postcode",))
POSITION = entity(lat=LATITUDE, lon=LONGITUDE)
PRICE = entity(amount=MONEY, currency=CURRENCY)

ENTITIES: dict[str, Schema] = {
    "person": entity(name=NAME, age={"type": "integer", "minimum": 0, "maximum": 130}, email=EMAIL),
    "account": entity(id=UUID, owner=NAME, active=FLAG, opened=DATE, balance=PRICE),
    "address": ADDRESS,
    "place": entity(name=NAME, position=POSITION, tags=several(SLUG)),
    "invoice": entity(
        number={"type": "string", "pattern": "^INV-[0-9]{4,8}$"},
        issued=DATE,
        lines=several(entity(item=NAME, quantity=INDEX, price=PRICE), 1),
        paid=FLAG,
    ),
    "order": entity(id=UUID, state=one_of("new", "paid", "shipped"), items=several(SLUG, 1)),
    "product": entity(sku=SLUG, title=NAME, price=PRICE, stock=COUNT, optional=("stock",)),
    "review": entity(stars={"type": "integer", "minimum": 1, "maximum": 5}, text=NAME),
    "weather_query": entity(
        location=NAME, unit=one_of("celsius", "fahrenheit"), days=INDEX, optional=("unit", "days")
    ),
    "forecast": entity(date=DATE, low={"type": "number"}, high={"type": "number"}, rain=RATIO),
    "event": entity(
        title=NAME, starts=WHEN, ends=WHEN, guests=several(EMAIL), optional=("guests",)
    ),
    "flight": entity(
        code={"type": "string", "pattern": "^[A-Z]{2}[0-9]{1,4}$"},
        departs=WHEN,
        seats=several({"type": "string", "pattern": "^[0-9]{1,2}[A-F]$"}, 1, 4),
    ),
    "hotel_search": entity(city=NAME, arrival=DATE, nights=INDEX, max_price=MONEY),
    "recipe": entity(
        title=NAME,
        minutes=INDEX,
        ingredients=several(entity(name=NAME, grams=COUNT), 1),
        steps=several(NAME, 1),
    ),
    "movie": entity(
        title=NAME, year={"type": "integer", "minimum": 1888, "maximum": 2100}, cast=several(NAME)
    ),
    "song": entity(title=NAME, artist=NAME, seconds=COUNT, explicit=FLAG),
    "book": entity(
        isbn={"type": "string", "pattern": "^97[89][0-9]{10}$"},
        title=NAME,
        authors=several(NAME, 1),
    ),
    "article": entity(title=NAME, slug=SLUG, body=TEXT, published=maybe(WHEN)),
    "sentiment": entity(label=one_of("positive", "neutral", "negative"), score=RATIO),
    "classification": entity(
        labels=several(entity(label=SLUG, confidence=RATIO), 1, 5), model=SLUG
    ),
    "extraction": entity(
        people=several(NAME), places=several(NAME), dates=several(DATE), amounts=several(PRICE)
    ),
    "triple": entity(subject=NAME, relation=one_of("is", "has", "knows"), object=NAME),
    "summary": entity(headline=NAME, points=several(NAME, 1, 5), language=one_of("en", "de", "fr")),
    "translation": entity(source=one_of("en", "de"), target=one_of("fr", "es"), text=TEXT),
    "search_call": entity(query=NAME, limit=INDEX, filters=maybe(entity(year=COUNT, kind=SLUG))),
    "sql_call": entity(table=SLUG, columns=several(SLUG, 1), where=maybe(TEXT), limit=INDEX),
    "shell_call": entity(command=one_of("ls", "cat", "grep"), arguments=several(NAME)),
    "email_draft": entity(to=several(EMAIL, 1), cc=several(EMAIL), subject=NAME, body=TEXT),
    "ticket": entity(
        key={"type": "string", "pattern": "^[A-Z]{2,5}-[1-9][0-9]{0,4}$"},
        priority=one_of(1, 2, 3),
        assignee=maybe(NAME),
        labels=several(SLUG),
    ),
    "commit": entity(
        sha={"type": "string", "pattern": "^[0-9a-f]{40}$"},
        author=NAME,
        at=WHEN,
        files=several(TEXT),
    ),
    "pull_request": entity(number=INDEX, title=NAME, draft=FLAG, merged=maybe(WHEN)),
    "package": entity(
        name=SLUG, version=VERSION, licence=one_of("MIT", "Apache-2.0", "BSD-3-Clause")
    ),
    "container": entity(
        image=TEXT,
        ports=several({"type": "integer", "minimum": 1, "maximum": 65535}),
        replicas=INDEX,
    ),
    "dns_record": entity(host=HOST, kind=one_of("A", "AAAA", "CNAME"), value=TEXT, ttl=COUNT),
    "server": entity(host=HOST, address=IPV4, cores=INDEX, healthy=FLAG),
    "log_line": entity(at=WHEN, level=one_of("debug", "info", "warning", "error"), message=TEXT),
    "metric": entity(name=SLUG, value={"type": "number"}, unit=one_of("s", "bytes", "1"), at=WHEN),
    "alarm": entity(
        metric=SLUG, above={"type": "number"}, for_minutes=INDEX, notify=several(EMAIL, 1)
    ),
    "sensor": entity(id=UUID, reading={"type": "number"}, battery=RATIO, position=maybe(POSITION)),
    "patient": entity(
        id=UUID, born=DATE, blood=one_of("0", "A", "B", "AB"), allergies=several(NAME)
    ),
    "prescription": entity(
        drug=NAME, milligrams=INDEX, times_a_day={"type": "integer", "minimum": 1, "maximum": 6}
    ),
    "lab_result": entity(
        code={"type": "string", "pattern": "^[0-9]{3,5}-[0-9]$"},
        value={"type": "number"},
        abnormal=FLAG,
    ),
    "transfer": entity(
        iban={"type": "string", "pattern": "^[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}$"},
        amount=PRICE,
        on=DATE,
    ),
    "trade": entity(
        symbol={"type": "string", "pattern": "^[A-Z]{1,5}$"},
        side=one_of("buy", "sell"),
        quantity=INDEX,
    ),
    "contact": entity(name=NAME, phones=several(PHONE, 1), address=maybe(ADDRESS)),
    "theme": entity(background=HEX_COLOUR, text=HEX_COLOUR, dark=FLAG),
    "form_field": entity(
        label=NAME, kind=one_of("text", "number", "date"), required=FLAG, help=maybe(NAME)
    ),
    "quiz": entity(
        question=NAME,
        choices=several(NAME, 2, 4),
        answer={"type": "integer", "minimum": 0, "maximum": 3},
    ),
}


def _alone(name: str, schema: Schema) -> Schema:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name} | schema


def _page(name: str, schema: Schema) -> Schema:
    return entity(items=several(schema, 1, 2), total=COUNT, next=maybe(TEXT))


def _by_reference(name: str, schema: Schema) -> Schema:
    return entity(first={"$ref": f"#/$defs/{name}"}, second=maybe({"$ref": f"#/$defs/{name}"})) | {
        "$defs": {name: schema}
    }


def _tagged(name: str, schema: Schema) -> Schema:
    good = entity(what={"const": name}, **schema["properties"])
    bad = entity(what={"const": "error"}, message=NAME)
    return entity(result={"oneOf": [good, bad]})


def _tree(name: str, schema: Schema) -> Schema:
    node = entity(value=schema, children=several({"$ref": "#/definitions/node"}, 0, 2))
    return {"$ref": "#/definitions/node", "definitions": {"node": node}}


def _by_key(name: str, schema: Schema) -> Schema:
    return {
        "type": "object",
        "patternProperties": {"^[a-z]{1,8}$": schema},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 3,
    }


def _with_reasoning(name: str, schema: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {"reasoning": NAME, "confidence": RATIO, name: schema},
        "required": ["reasoning", name],
    }


SHAPES: list[Callable[[str, Schema], Schema]] = [
    _alone, _page, _by_reference, _tagged, _tree, _by_key, _with_reasoning,
]  # fmt: skip


def all_schemas() -> Iterator[tuple[str, Schema]]:
    """Name and schema of each."""
    for shape, (name, schema) in itertools.product(SHAPES, ENTITIES.items()):
        yield f"{shape.__name__.strip('_')}-{name}", shape(name, schema)
