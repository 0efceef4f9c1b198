"""From a credential to a tenant: what a gateway asks before anything else."""

from collections.abc import Callable

from serve_app.admission.credentials import KeyRing, Randomness
from serve_app.admission.tenants import Tenant, Tenants
from serve_app.admission.tickets import Ticket, Tickets
from serve_app.errors import NotAllowed


class Gate:
    """Verifies keys and tickets. Not thread-safe; one for the cluster: two would honour a ticket twice.

    Args:
        tenants, keys: as of now; `replace` gives newer ones.
        clock: monotonic seconds.
        random: as `secrets.token_bytes`.
    """

    def __init__(self, tenants: Tenants, keys: KeyRing, clock: Callable[[], float], random: Randomness) -> None:
        self._tenants = tenants
        self._keys = keys
        self._tickets = Tickets(clock, random)

    def replace(self, tenants: Tenants, keys: KeyRing) -> None:
        """Take what was read anew. Tickets stay, but those of a key that is gone open nothing."""
        self._tenants, self._keys = tenants, keys

    def by_key(self, presented: str, origin: str | None = None, *, home: bool = False) -> Tenant:
        """Who presents this key, in a header. A page at home is the operator's, and welcome for every tenant.

        Raises:
            NotAllowed: the key opens nothing, or its tenant is gone.
            Forbidden: a page of another origin.
        """
        tenant = self._tenants.require(self._keys.verify(presented).tenant)
        if not home:
            tenant.permit_origin(origin)
        return tenant

    def ticket(self, presented: str, origin: str | None = None, *, home: bool = False) -> Ticket:
        """Trade a key for a ticket.

        Raises:
            NotAllowed, Forbidden: as `by_key`.
            TooManyTickets: of this tenant are unused.
        """
        self.by_key(presented, origin, home=home)
        return self._tickets.issue(self._keys.verify(presented), origin)

    def by_ticket(self, presented: str, origin: str | None = None, *, home: bool = False) -> Tenant:
        """Who presents this ticket, in a URL. It is used up.

        Raises:
            NotAllowed: unknown, expired, used, of another page, or of a key or tenant that is gone.
            Forbidden: a page of another origin.
        """
        holder = self._tickets.redeem(presented, origin)
        if not self._keys.alive(holder.key):
            raise NotAllowed("missing or wrong ticket")
        tenant = self._tenants.require(holder.tenant)
        if not home:
            tenant.permit_origin(origin)
        return tenant
