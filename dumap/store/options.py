"""Options of the services behind URLs, such as keys and endpoints: known to this process, and shown to nobody.

They are kept by service and bucket: whatever opens a location of the same bucket later uses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dumap.store.disk import is_remote

CLIENT = re.compile(
    "allow_http|allow_invalid_certificates|connect_timeout|timeout|default_content_type|http[12]_.*|pool_.*|proxy_.*|"
    "randomize_addresses|root_certificates|user_agent"
)
"""Options of the connection; all others are the service's own."""
SHORTEST = 5
"""Values of fewer characters are no secrets: regions, numbers."""
_options: dict[str, Mapping[str, Any]] = {}


def _bucket_of(location: str) -> str:
    scheme, _, rest = location.partition("://")
    return f"{scheme.lower()}://{rest.split('/')[0]}"


def use_options(locations: Iterable[str], options: Mapping[str, Any]) -> None:
    """Open locations, and others of their buckets, by some options from now on; without any, by the environment."""
    for location in filter(is_remote, locations):
        if options:
            _options[_bucket_of(location)] = options
        else:
            _options.pop(_bucket_of(location), None)


def known_options() -> dict[str, Mapping[str, Any]]:
    """Return the options that this process knows, by bucket."""
    return dict(_options)


def learn_options(options: Mapping[str, Mapping[str, Any]]) -> None:
    """Know the options that another process knows."""
    _options.update(options)


def arguments_of(location: str) -> dict[str, dict[str, Any]]:
    """Return the arguments by which obstore opens a location: the service's options, and the connection's."""
    options = dict(_options.get(_bucket_of(location), {}))
    client = {name: options.pop(name) for name in list(options) if CLIENT.fullmatch(name)}
    if str(options.get("endpoint", options.get("aws_endpoint", ""))).startswith("http://"):
        client.setdefault("allow_http", True)
    return {name: some for name, some in (("config", options), ("client_options", client)) if some}


def hide(text: str) -> str:
    """Return a text without the values of options."""
    for options in _options.values():
        for value in options.values():
            if isinstance(value, str) and len(value) >= SHORTEST:
                text = text.replace(value, "***")
    return text
