"""The queue of the tickets that wait: bounded, and fair between clients."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from lmjax.serving.ticket import Ticket


class FairQueue:
    """Tickets in the order of their turn: one of each client that waits, then the next one of each.

    So a client that sends many requests at once delays itself more than others. It is not locked.
    """

    def __init__(self):
        self._clients: OrderedDict[str, deque[Ticket]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    def put(self, tickets: Iterable[Ticket]) -> None:
        """Appends tickets to those of their clients."""
        for ticket in tickets:
            self._clients.setdefault(ticket.client, deque()).append(ticket)

    def get(self) -> Ticket:
        """Returns the ticket whose turn it is; its client's next one waits until the others had theirs."""
        client, waiting = self._clients.popitem(last=False)
        ticket = waiting.popleft()
        if waiting:
            self._clients[client] = waiting
        return ticket

    def remove(self, unwanted: Callable[[Ticket], bool]) -> list[Ticket]:
        """Returns the tickets for which `unwanted` is True, after taking them out."""
        found = [ticket for waiting in self._clients.values() for ticket in waiting if unwanted(ticket)]
        for ticket in found:
            self._clients[ticket.client].remove(ticket)
        for client in [client for client, waiting in self._clients.items() if not waiting]:
            del self._clients[client]
        return found
