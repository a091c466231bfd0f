"""The prices of a configuration: the table with the user's file, and those of its providers."""

from __future__ import annotations

from ..config import Config, ProviderConfig
from ..config.schema import Problems
from ..config.settings import PriceFile
from ..pricing import Price, PriceTable, shipped, table
from ..providers import PRESETS

_merged: tuple[PriceFile, PriceTable] | None = None  # a file of prices, and its table


def price_table(config: Config) -> PriceTable:
    """Return the shipped prices with those of [prices].file over them; raise ConfigError.

    The last table is kept: workers get it from gunicorn's master.
    """
    global _merged
    file = config.price_table
    if file is None:
        return shipped()
    if _merged is None or _merged[0] is not file:
        _merged = file, PriceTable(shipped().shipped, table.read(file.content, file.path))
    return _merged[1]


def own_prices(config: Config, known: PriceTable) -> dict[str, dict[str, Price]]:
    """Return the prices set in the configuration, by provider and model; the rest is as *known*."""
    problems, found = Problems(), dict[str, dict[str, Price]]()
    half = [  # providers that have other errors
        ProviderConfig(name, prices=written["prices"])
        for name, written in config.unread
        if isinstance(written, dict) and isinstance(written.get("prices"), dict)
    ]
    for each in (*config.providers, *half):
        for model, entry in each.prices.items():
            with problems:
                found.setdefault(each.name, {})[model] = known.with_own(
                    entry,
                    provider=each.name,
                    vendor=vendor_of(each),
                    model=model,
                    place=f"[providers.{each.name}].prices.{model}",
                )
    problems.check()
    return found


def is_vendor(config: ProviderConfig) -> bool:
    """Whether the provider is its preset's vendor, not a server with the same format."""
    preset = PRESETS.get(config.type)
    needs_address = preset is not None and not preset.base_url  # as at Azure: each has its own
    return config.name == config.type or not config.base_url or needs_address


def vendor_of(config: ProviderConfig) -> str:
    """Return the vendor in the price table whose models the provider has, or ""."""
    preset = PRESETS.get(config.type)
    if preset is None:  # echo, or a plug-in
        return config.name
    return (preset.vendor or config.type) if is_vendor(config) else ""
