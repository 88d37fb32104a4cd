"""The small models that the interop tests compare with transformers: a name, a class, a config.

`python -m tests.interop.record NAME ...` recreates the folders under `recorded/`; it needs torch and transformers
(`pip install '.[parity]'`). The tests read the folders and need neither.
"""

from tests.interop.cases import decoders, encoders, pairs
from tests.interop.cases.base import Case

CASES: dict[str, Case] = decoders.CASES | encoders.CASES | pairs.CASES
