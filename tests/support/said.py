"""What tokenlens says of requests while engines of a process run: its warnings and its counter."""

import logging

from tokenlens.metrics import collector


class Said(logging.Handler):
    """Warnings and requests whose thinking never opened, since they were asked for last."""

    def __init__(self, engine):
        super().__init__(logging.WARNING)
        self.messages = []
        self._engine, self._counted = engine, 0.0
        logging.getLogger("tokenlens").addHandler(self)

    def emit(self, record):
        """Keep what is said."""
        self.messages.append(record.getMessage())

    def take(self):
        """As plain data."""
        messages, self.messages = self.messages, []
        total = collector(self._engine)._found["never_opened"]._value.get()
        counted, self._counted = total - self._counted, total
        return {"warnings": messages, "never_opened": counted}
