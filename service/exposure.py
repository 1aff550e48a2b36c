"""Whether a server may start on its address: who others can reach needs a key to keep them out."""

from __future__ import annotations

from service.settings import InvalidSettings, Settings
from service.store.store import Store, StoreMisfit, StoreUnavailable


def opened(settings: Settings) -> Store:
    """The store of the settings; nothing is read of it yet.

    Raises:
        InvalidSettings: The URL is none of a database, or its driver is not installed.
    """
    try:
        return Store(settings.database_url)
    except StoreMisfit as error:
        raise InvalidSettings(f"FOVEA_DATABASE_URL: {error}") from None


def check_exposure(settings: Settings) -> None:
    """See that a server which others can reach has a key to keep them out; if the database is away, that waits.

    Raises:
        InvalidSettings: It has none.
    """
    if settings.is_loopback() or settings.insecure:
        return
    store = opened(settings)
    try:
        if store.exists():
            store.open()
            if any(key.revoked is None for key in store.keys.all()):
                return
    except (StoreMisfit, StoreUnavailable):
        return  # nothing is answered until the keys have been read
    finally:
        store.close()
    raise InvalidSettings(
        f"others can reach {settings.host or 'all addresses'}, and there is no key to keep them out:"
        " make one with `python -m service keys create --name NAME`, or serve anybody with --insecure"
    )
