#!/bin/sh
# Ask for an answer with redis-cli alone and print its events as they come.
#
#     examples/redis_cli.sh '"Two sentences about rain:"'
#     REDIS_CLI="redis-cli -s /tmp/server.sock" examples/redis_cli.sh '"Rain:"'
set -eu
cli=${REDIS_CLI:-redis-cli}
prompt=${1:-'"Two sentences about rain:"'} # a JSON string
job="sh-$(date +%s)-$$"
events=$(mktemp -u)
mkfifo "$events"
$cli SUBSCRIBE "{tb:default:0}:tok:$job" >"$events" &
trap 'kill $! 2>/dev/null; rm -f "$events"' EXIT
while read -r line; do
  case $line in
    subscribe) # confirmed: nothing from here on is missed
      request="{\"v\":2,\"id\":\"$job\",\"prompt\":$prompt,\"max_tokens\":32}"
      $cli XADD '{tb:default}:inbox' '*' job "$request" >/dev/null
      ;;
    *'"finish":{'*) printf '%s\n' "$line" && break ;;
    '{"v":'*) printf '%s\n' "$line" ;;
  esac
done <"$events"
