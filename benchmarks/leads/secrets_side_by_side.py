"""The secrets are read side by side."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import initializer

read_secret = initializer.read_secret


def read_secrets(named: Any, deadline: Any, problems: list[str]) -> Any:
    client = initializer.secrets_client(deadline)
    with ThreadPoolExecutor(3) as threads:
        asked = {key: threads.submit(read_secret, client, name) for key, name in named.items() if name}
        return client, {key: answer.result() for key, answer in asked.items()}


initializer.read_secrets = read_secrets
handler = initializer.handler
