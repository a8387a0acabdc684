"""The recipes by name; one module per task."""

from collections.abc import Callable

from saiopt.choices import require_known
from saiopt.lab.recipe import Recipe
from saiopt.lab.recipes.ddpm_digits import ddpm_digits
from saiopt.lab.recipes.gpt2_openwebtext import gpt2_openwebtext
from saiopt.lab.recipes.gpt2m_lora_e2e import gpt2m_lora_e2e
from saiopt.lab.recipes.gpt_packages import gpt_packages_3m, gpt_packages_10m
from saiopt.lab.recipes.gpt_stdlib import gpt_stdlib
from saiopt.lab.recipes.llama2_7b_24gb import llama2_7b_24gb
from saiopt.lab.recipes.lora_ddpm_digits import lora_ddpm_digits
from saiopt.lab.recipes.lora_pydoc import lora_pydoc
from saiopt.lab.recipes.resnet18_cifar10 import resnet18_cifar10
from saiopt.lab.recipes.resnet_digits import resnet_digits
from saiopt.lab.recipes.sd_lora import sd_lora
from saiopt.lab.recipes.vit_digits import vit_digits
from saiopt.lab.recipes.vit_s16_imagenet import vit_s16_imagenet

RECIPES: dict[str, Callable[[], Recipe]] = {
    "gpt-stdlib": gpt_stdlib,
    "vit-digits": vit_digits,
    "resnet-digits": resnet_digits,
    "lora-pydoc": lora_pydoc,
    "ddpm-digits": ddpm_digits,
    "lora-ddpm-digits": lora_ddpm_digits,
    "gpt-packages-3m": gpt_packages_3m,
    "gpt-packages-10m": gpt_packages_10m,
    "gpt2-openwebtext": gpt2_openwebtext,
    "vit-s16-imagenet": vit_s16_imagenet,
    "resnet18-cifar10": resnet18_cifar10,
    "gpt2m-lora-e2e": gpt2m_lora_e2e,
    "sd-lora": sd_lora,
    "llama2-7b-24gb": llama2_7b_24gb,
}


def get_recipe(name: str) -> Recipe:
    """Return a recipe by its name.

    Args:
        name: A key of ``RECIPES``.

    Returns:
        The recipe as it is published.

    Raises:
        ValueError: If there is no such recipe.
    """
    require_known("recipe", name, RECIPES)
    return RECIPES[name]()


def small_recipes() -> tuple[str, ...]:
    """Return the names of the recipes that train in minutes on any machine."""
    return tuple(name for name, build in RECIPES.items() if build().size == "small")
