"""Options of the services behind URLs, such as keys and endpoints. They stay in memory and appear in no message.

Options are known by service and bucket. Every later opening of a location in the same bucket uses them.
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
"""Options of the connection; all other options belong to the service."""
SHORTEST = 5
"""Values with fewer characters are not hidden: they are regions or numbers, not secrets."""
_options: dict[str, Mapping[str, Any]] = {}


def _bucket_of(location: str) -> str:
    """Return the scheme and the bucket of a URL."""
    scheme, _, rest = location.partition("://")
    return f"{scheme.lower()}://{rest.split('/')[0]}"


def use_options(locations: Iterable[str], options: Mapping[str, Any]) -> None:
    """Set the options for the buckets of locations. Without options, obstore reads the environment."""
    for location in filter(is_remote, locations):
        if options:
            _options[_bucket_of(location)] = options
        else:
            _options.pop(_bucket_of(location), None)


def known_options() -> dict[str, Mapping[str, Any]]:
    """Return the options that this process knows, by bucket."""
    return dict(_options)


def learn_options(options: Mapping[str, Mapping[str, Any]]) -> None:
    """Add options that another process knows, by bucket."""
    _options.update(options)


def arguments_of(location: str) -> dict[str, dict[str, Any]]:
    """Return obstore's arguments for a location: 'config', the service's options, and 'client_options'."""
    options = dict(_options.get(_bucket_of(location), {}))
    client = {name: options.pop(name) for name in list(options) if CLIENT.fullmatch(name)}
    if str(options.get("endpoint", options.get("aws_endpoint", ""))).startswith("http://"):
        client.setdefault("allow_http", True)
    return {name: values for name, values in (("config", options), ("client_options", client)) if values}


def hide(text: str) -> str:
    """Return a text in which the values of options are replaced by '***'."""
    for options in _options.values():
        for value in options.values():
            if isinstance(value, str) and len(value) >= SHORTEST:
                text = text.replace(value, "***")
    return text
