#!/bin/sh
# Refuses lines of more than 125 characters in files that golangci-lint does not read. A row of a Markdown table may be
# longer, as it cannot be broken.
set -eu
cd "$(dirname "$0")/../.."
git ls-files '*.md' '*.sh' '*.yml' Makefile .ci/run | xargs perl -CSD -ne '
	chomp; if (length > 125 && !/^ *\|/) { print STDERR "$ARGV:$.: longer than 125 characters\n"; $wide = 1 }
	close ARGV if eof; END { $? = $wide // 0 }'
