package main

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gorm-dbmutex/dbmutex/internal/schema"
)

// simpleName is a table's name that needs no quotes, perhaps behind a schema's.
var simpleName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?$`)

func newSchema(g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "schema postgres|sqlite|mysql",
		Short: "Print the SQL that makes the tables",
		Long: `Schema prints the SQL that makes the tables, for programs whose tables are made by goose, golang-migrate, Atlas or
by hand. That of mysql is for MariaDB, too. It asks no database. The first table is that of the mutexes, under the name that
--table gives. The second one is that of run --once-per, and of Once in programs: who uses neither needs none.`,
		ValidArgs: []string{"postgres", "sqlite", "mysql"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(_ *cobra.Command, args []string) error {
			if !simpleName.MatchString(g.table) {
				return fmt.Errorf("--table %q: want a name of letters, digits and _, or two with a dot between", g.table)
			}
			mutexes, err := schema.SQL(args[0])
			if err != nil {
				return err
			}
			onces, err := schema.OnceSQL(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Print(renamed(mutexes, "db_mutexes", g.table) + "\n" + renamed(onces, "db_onces", onceTable(g.table)))
			return err
		},
	}
}

// renamed gives a table and its indexes another name. Those of an index have no schema.
func renamed(text, table, name string) string {
	return strings.NewReplacer("idx_"+table, "idx_"+strings.ReplaceAll(name, ".", "_"), table, name).Replace(text)
}
