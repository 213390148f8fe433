#!/bin/sh
# Drain this node when AWS sends a spot interruption notice, two minutes ahead: `spot_notice.sh HEAD:6379`.
#
# Ray does not read the notice itself. When the node drains, training writes a checkpoint and resumes without the node, and Ray places
# no new work on the node. The script ends at once on an instance that is not spot, or where another copy of the script runs.
# SPOT_POLL_S is the time between requests in seconds; IMDS_URL is the metadata service.
set -u
export RAY_ADDRESS="$1"
metadata=${IMDS_URL:-http://169.254.169.254}/latest
poll_s=${SPOT_POLL_S:-5}

read_metadata() {
    session=$(curl --silent --fail --max-time 2 --request PUT --header 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/api/token") &&
        curl --silent --fail --max-time 2 --header "X-aws-ec2-metadata-token: $session" "$metadata/meta-data/$1"
}

exec 9> "${TMPDIR:-/tmp}/spot_notice.lock"
flock --nonblock 9 || exit 0

until market=$(read_metadata instance-life-cycle); do
    sleep "$poll_s" 9>&-
done
if [ "$market" != spot ]; then
    echo "event=no_spot_instance market=$market"
    exit 0
fi

echo "event=watching poll_s=$poll_s"
# The answer is 404 until AWS sends the notice, then {"action": "terminate", "time": "2026-01-02T03:04:05Z"}.
until notice=$(read_metadata spot/instance-action); do
    sleep "$poll_s" 9>&-
done
end=$(echo "$notice" | sed -n 's/.*"time" *: *"\([^"]*\)".*/\1/p')
end_s=$(date --date "${end:-120 seconds}" +%s 2> /dev/null) || end_s=$(($(date +%s) + 120))

while left_s=$((end_s - $(date +%s))); [ "$left_s" -gt 0 ]; do
    echo "event=spot_notice end=$end left_s=$left_s"
    # Without --node-id, the node of this script is drained.
    if ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "spot notice for $end" \
        --deadline-remaining-seconds "$left_s" 9>&-; then
        echo "event=draining"
        exit 0
    fi
    sleep "$poll_s" 9>&-
done
echo "event=too_late end=$end"
exit 1
