# Without -n, these commands first write everything to the disks and only then call
# init. A disk that hangs would keep the machine from going off. What init does
# has time limits.
alias halt='halt -n' poweroff='poweroff -n' reboot='reboot -n'
