# Runs one server and outlives a parent that was killed: the parent holds the other end of our standard input.
# A line there is the name of a signal for the server; the end of input means: stop it, by force if it takes too long.
# sh guard.sh PID_FILE STOP_SIGNAL GRACE_SECONDS COMMAND...
pid_file=$1 stop_signal=$2 grace_seconds=$3
shift 3
exec 3<&0 </dev/null
# Only the parent decides: a handler, not '', because ignored signals would be inherited by the server.
trap : HUP INT TERM

"$@" 3<&- &
server=$!
echo "$server $stop_signal" >"$pid_file"

{
  # Ends between two steps, not in the middle of a `sleep`, which would be left behind.
  trap exit TERM
  while read -r signal; do kill -s "$signal" "$server"; done
  kill -s "$stop_signal" "$server"
  tenths=$((grace_seconds * 10))
  while [ "$tenths" -gt 0 ] && kill -0 "$server"; do
    sleep 0.1
    tenths=$((tenths - 1))
  done
  kill -s KILL "$server"
} <&3 2>/dev/null &
reader=$!
exec 3<&-

wait "$server"
code=$?
# A signal to this shell ends the wait early.
while kill -0 "$server" 2>/dev/null; do
  wait "$server"
  code=$?
done
kill -s TERM "$reader" 2>/dev/null
wait "$reader"
rm -f "$pid_file"
exit "$code"
