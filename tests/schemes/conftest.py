import pytest
from small_models import with_head


@pytest.fixture(scope="package")
def base():
    """{name: (model, its variables)}."""
    return {name: with_head(name) for name in ("vit", "resnet", "vit_wide")}
