"""The client is made when the module is imported, while Lambda gives the function a whole CPU."""

from __future__ import annotations

import initializer
from database import Deadline

CLIENT = initializer.secrets_client(Deadline())
initializer.secrets_client = lambda deadline: CLIENT
handler = initializer.handler
