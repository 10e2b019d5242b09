"""The cases of all families."""

import cases_vit

CASES = [*cases_vit.CASES]
