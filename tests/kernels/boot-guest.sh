#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# In the guest: this is the kernel that was asked for, and it takes the module.
. /asr/lib.sh
[ "$(uname -r)" = "$(cat /asr/in/version)" ] || fail "this is $(uname -r), not $(cat /asr/in/version)"
want modprobe dm_mod
want insmod /asr/dm-asr.ko
dmsetup targets | grep -q '^asr ' || fail "no target: $(dmsetup targets)"
want rmmod dm_asr
