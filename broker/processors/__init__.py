"""Request processors: one module per family of request codes.

A processor's method takes the connection and the command. It either answers at once through
`connection.reply`, or later from a callback, or is a coroutine that the dispatcher runs. It raises
a `DLedgerError` to refuse; the dispatcher turns it into the answer.
"""
