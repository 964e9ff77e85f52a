"""The client is made when the module is imported, while Lambda gives the function a whole CPU."""

from __future__ import annotations

import initializer
import secret_store
from common import Deadline

CLIENT = secret_store.secrets_client(Deadline())
secret_store.secrets_client = lambda deadline: CLIENT
handler = initializer.handler
