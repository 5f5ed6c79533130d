"""What is learnt: the tasks that `training.experiment` trains, tests and exports."""
