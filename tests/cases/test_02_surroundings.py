"""A trial sees the module's surroundings as the forward sweep did."""

import pytest
from lightning.pytorch.loggers import CSVLogger

from tests.cases.helpers import Net, fit, rejecting

#: What a training_step may ask about where it runs.
QUESTIONS = {
    "trainer.log_dir": lambda m: str(m.trainer.log_dir),
    "logger.log_dir": lambda m: str(m.logger.log_dir),
    "logger.save_dir": lambda m: str(m.logger.save_dir),
    "kinds-of-loggers": lambda m: str([type(each).__name__ for each in m.loggers]),
    "root_dir": lambda m: str(getattr(m.trainer.loggers[-1], "root_dir", None)),
    "logger-is-csv": lambda m: isinstance(m.logger, CSVLogger),
}


@pytest.mark.parametrize("what", QUESTIONS)
def test_same_answer(what):
    """The answer in a trial is the answer in the forward sweep."""
    answers = []

    class Asking(Net):
        def training_step(self, batch, batch_idx):
            answers.append(QUESTIONS[what](self))
            return self.loss(batch)

    fit(Asking(), rejecting(), max_epochs=1, logger=CSVLogger("logs"))
    assert len(answers) > 6
    assert set(answers) == {answers[0]}


@pytest.mark.parametrize("where", ["callback_metrics", "logged_metrics"])
def test_metrics(where):
    """What this step logs is not among the Trainer's metrics yet when a trial runs the step again."""
    seen = {}

    class Logging(Net):
        def training_step(self, batch, batch_idx):
            seen.setdefault(batch_idx, []).append(float(getattr(self.trainer, where).get("train_loss", -1.0)))
            loss = self.loss(batch)
            self.log("train_loss", loss)
            return loss

    fit(Logging(), rejecting(), max_epochs=1, logger=CSVLogger("logs"), log_every_n_steps=1)
    assert all(len(set(values)) == 1 for values in seen.values()), seen
