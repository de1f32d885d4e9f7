"""The throttle adviser judged in a closed loop: a simulated host, baselines, an oracle and the bars."""
