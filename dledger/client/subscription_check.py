"""Asks the brokers of a topic whether they can serve a subscription, before anything is read."""

from __future__ import annotations

import logging

import msgspec

from dledger.client.filters import SQL, Subscription
from dledger.client.session import ClientSession
from dledger.codes import RequestCode
from dledger.errors import BrokerResponseError, DLedgerError
from dledger.remoting.bodies import SubscriptionData

logger = logging.getLogger(__name__)

_CHECK_S = 3.0


def wire(subscription: Subscription) -> SubscriptionData:
    """Returns a subscription as heartbeats and checks carry it."""
    return SubscriptionData(
        topic=subscription.topic,
        expression=subscription.expression,
        tags=list(subscription.tags),
        codes=list(subscription.codes),
        version=subscription.version,
        expression_type=subscription.expression_type,
    )


async def check_subscription(
    session: ClientSession, group: str, subscription: Subscription
) -> None:
    """Raises if a broker refuses a condition in SQL; brokers that do not answer refuse nothing.

    Raises:
        BrokerResponseError: 23: the condition makes no sense; 1: the broker has no SQL filters.
    """
    route = session.routes.route(subscription.topic)
    if subscription.expression_type != SQL or route is None:
        return
    body = msgspec.json.encode(
        {
            "clientId": session.client_id,
            "group": group,
            "subscriptionData": msgspec.to_builtins(wire(subscription)),
        }
    )
    for name in sorted(route.groups):
        try:
            await session.call_leader(
                name, RequestCode.CHECK_CLIENT_CONFIG, None, body, timeout_s=_CHECK_S
            )
        except BrokerResponseError:
            raise
        except DLedgerError as error:
            logger.info("subscription not checked broker=%s error=%s", name, error)
