#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
#
# convert [DRIVER]: unbinds the last virtio device of a driver (virtio_rng) and binds it again, in a loop.  Its
# rings are DMA memory, which the kernel of a TD shares with the host and takes back each time.  Prints each
# second "rounds N", and upon SIGTERM "total rounds N"; ends with 1 once the device does not come back.

driver=/sys/bus/virtio/drivers/${1:-virtio_rng}
for device in "$driver"/virtio*; do :; done
device=${device##*/}
rounds=0
trap 'echo "total rounds $rounds"; exit 0' TERM
printed=$EPOCHSECONDS
while echo "$device" >"$driver/unbind" && echo "$device" >"$driver/bind" && [ -e "$driver/$device" ]; do
	rounds=$((rounds + 1))
	if [ "$EPOCHSECONDS" != "$printed" ]; then
		printed=$EPOCHSECONDS
		echo "rounds $rounds"
	fi
done
echo "error: $device of $driver has not come back after $rounds rounds"
exit 1
