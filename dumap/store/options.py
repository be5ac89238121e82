"""Options of the services behind URLs, such as keys and endpoints. They stay in memory and appear in no message.

Options are known by service and bucket. Every later opening of a location in the same bucket uses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dumap.store.disk import is_remote

CLIENT_OPTIONS = re.compile(
    "allow_http|allow_invalid_certificates|connect_timeout|timeout|default_content_type|http[12]_.*|pool_.*|proxy_.*|"
    "randomize_addresses|root_certificates|user_agent"
)
"""Options of the connection; all other options belong to the service."""
MIN_SECRET_LENGTH = 5
"""Values with fewer characters are not hidden: they are regions or numbers, not secrets."""
_options_by_bucket: dict[str, Mapping[str, Any]] = {}


def _bucket_url(location: str) -> str:
    """Return the scheme and the bucket of a URL."""
    scheme, _, remainder = location.partition("://")
    return f"{scheme.lower()}://{remainder.split('/')[0]}"


def set_options(locations: Iterable[str], options: Mapping[str, Any]) -> None:
    """Set the options for the buckets of locations. Without options, obstore reads the environment."""
    for location in filter(is_remote, locations):
        if options:
            _options_by_bucket[_bucket_url(location)] = options
        else:
            _options_by_bucket.pop(_bucket_url(location), None)


def known_options() -> dict[str, Mapping[str, Any]]:
    """Return the options that this process knows, by bucket."""
    return dict(_options_by_bucket)


def add_options(options: Mapping[str, Mapping[str, Any]]) -> None:
    """Add options that another process knows, by bucket."""
    _options_by_bucket.update(options)


def bucket_arguments(location: str) -> dict[str, dict[str, Any]]:
    """Return obstore's arguments for a location: 'config', the service's options, and 'client_options'."""
    options = dict(_options_by_bucket.get(_bucket_url(location), {}))
    client_options = {name: options.pop(name) for name in list(options) if CLIENT_OPTIONS.fullmatch(name)}
    if str(options.get("endpoint", options.get("aws_endpoint", ""))).startswith("http://"):
        client_options.setdefault("allow_http", True)
    return {name: values for name, values in (("config", options), ("client_options", client_options)) if values}


def hide(text: str) -> str:
    """Return a text in which the values of options are replaced by '***'."""
    for options in _options_by_bucket.values():
        for value in options.values():
            if isinstance(value, str) and len(value) >= MIN_SECRET_LENGTH:
                text = text.replace(value, "***")
    return text
