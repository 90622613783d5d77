"""What identifies a prior (`prior`), a data set (`dataset`) and targets made from both (`settings`)."""
