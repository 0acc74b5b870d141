-- Tests of scripts/cookbook/backup_download.lua.

local t = require "gateway.test"

t.policy "scripts/cookbook/backup_download.lua"

local server = t.identity { cn = "backup", dns = "backup.example.org" }
local other = t.identity { cn = "backup.example.org" }


t.case("the backup server fetches a file, packed", function()
  local r = t.request(server, "GET", "/backup/boiler.log",
    { stub = { pack = { stdout = "packed" } } })
  t.allowed(r)
  t.ran(r, "pack", { file = "boiler.log" })
  t.equal(r.body, "packed")
  t.equal(r.headers["content-type"], "application/gzip")
end)

t.case("a name that is only the subject's is not enough", function()
  local r = t.request(other, "GET", "/backup/boiler.log")
  t.denied(r, "authorize")
  t.not_ran(r)
end)

t.case("no file outside, and no option", function()
  for _, name in ipairs { "..%2fgateway.lua", "-r.log", "boiler.log.gz",
    "%2fetc%2fpasswd" } do
    local r = t.request(server, "GET", "/backup/" .. name)
    t.refused(r, "path")
    t.not_ran(r)
  end
end)

t.case("half a backup is told from a whole one", function()
  local r = t.request(server, "GET", "/backup/boiler.log",
    { stub = { pack = { stdout = "pac", code = 1 } } })
  t.equal(r.cut, true)
end)
