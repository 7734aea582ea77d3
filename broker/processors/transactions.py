"""END_TRANSACTION (37). Serving leader only."""

from __future__ import annotations

from broker.context import BrokerContext
from broker.transaction_service import End, TransactionService
from dledger.codes import MessageFlag
from dledger.errors import InvalidParameterError
from dledger.remoting.commands import Command
from dledger.remoting.headers import EndTransactionHeader
from dledger.remoting.server import Connection

_COMMIT = int(MessageFlag.TRANSACTION_COMMIT)
_ROLLBACK = int(MessageFlag.TRANSACTION_ROLLBACK)


class TransactionProcessor:
    """Takes what producers say about their transactions."""

    def __init__(self, context: BrokerContext, service: TransactionService) -> None:
        self._context = context
        self._service = service

    async def end(self, connection: Connection, command: Command) -> None:
        """37: commits a transaction or rolls it back; "not known" changes nothing.

        Durability: when answered with success, committed and applied here.
        """
        header = command.header(EndTransactionHeader)
        if header.commit_or_rollback not in (0, _COMMIT, _ROLLBACK):
            raise InvalidParameterError(f"commitOrRollback {header.commit_or_rollback}")
        if header.commit_or_rollback:
            self._context.gate.check()
            await self._service.end(
                End(
                    half_offset=header.queue_offset,
                    physical_offset=header.physical_offset,
                    group=header.producer_group,
                    is_commit=header.commit_or_rollback == _COMMIT,
                    is_answer=header.from_transaction_check,
                )
            )
        connection.reply(command)
