#!/usr/bin/env bash
# Writes to standard output which libraries the program is made of, as CycloneDX 1.5 JSON: name, version, licence, and the checksum
# that Cargo.lock pins. Only what is built into a release, and what builds it, for the platform it runs on.
set -euo pipefail
cd "$(dirname "$0")/.."

libraries() {
  cargo tree --locked --edges normal,build --prefix none --no-dedupe --format '{p}|{l}' | sed 's/ (proc-macro)//; s/ (\*)//' | sort -u
}

libraries | awk -F '|' '
  BEGIN {
    while ((getline line < "Cargo.lock") > 0) {
      split(line, part, "\"")
      if (line ~ /^name = /) name = part[2]
      if (line ~ /^version = /) version = part[2]
      if (line ~ /^checksum = /) checksum[name " " version] = part[2]
    }
  }
  {
    split($1, word, " ")
    name = word[1]; version = substr(word[2], 2)
    if (name == "onceflow") { own = version; next }
    licence = $2
    gsub("/", " OR ", licence)
    item = sprintf("    {\"type\": \"library\", \"name\": \"%s\", \"version\": \"%s\", \"purl\": \"pkg:cargo/%s@%s\"", name, version, name, version)
    if (licence != "") item = item sprintf(", \"licenses\": [{\"expression\": \"%s\"}]", licence)
    sum = checksum[name " " version]
    if (sum != "") item = item sprintf(", \"hashes\": [{\"alg\": \"SHA-256\", \"content\": \"%s\"}]", sum)
    items[++count] = item "}"
  }
  END {
    print "{\n  \"bomFormat\": \"CycloneDX\",\n  \"specVersion\": \"1.5\",\n  \"version\": 1,"
    printf "  \"metadata\": {\"component\": {\"type\": \"application\", \"name\": \"onceflow\", \"version\": \"%s\"}},\n", own
    print "  \"components\": ["
    for (n = 1; n <= count; n++) print items[n] (n < count ? "," : "")
    print "  ]\n}"
  }'
