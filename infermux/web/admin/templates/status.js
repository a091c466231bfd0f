(() => {
  const INTERVAL = 5000, MAX_INTERVAL = 30000, SURE = 5000
  const note = document.getElementById("note"), main = document.querySelector("main")
  const base = location.origin + location.pathname.replace(/status\/?$/, "")
  const raw = new Map()                       // the parts as the service sent them, by id
  let timer, busy = false, armed = null

  const report = (text, bad = false) => {
    if (note.textContent !== text) note.textContent = text
    note.classList.toggle("bad", bad)
  }

  // -- local time --

  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone
  const format = options => new Intl.DateTimeFormat("en-GB", {hourCycle: "h23", ...options})
  const clock = format({hour: "2-digit", minute: "2-digit"}), second = format({hour: "2-digit", minute: "2-digit", second: "2-digit"})
  const day = format({day: "numeric", month: "short", hour: "2-digit", minute: "2-digit"}), date = format({dateStyle: "short"})
  const month = format({day: "numeric", month: "short"})
  const shown = (at, form) => {
    if (form === "date") return month.format(at)
    const now = new Date()
    if (form === "clock") return date.format(at) === date.format(now) || now - at < 12 * 36e5 ? clock.format(at) : day.format(at)
    return form === "second" && date.format(at) === date.format(now) ? second.format(at) : day.format(at).replace(",", "")
  }

  function localize(root) {
    for (const each of root.querySelectorAll("time[data-form]"))
      each.textContent = each.closest(".scale") && each.dataset.form === "clock" ? clock.format(new Date(each.dateTime)) : shown(new Date(each.dateTime), each.dataset.form)
    for (const each of root.querySelectorAll(".zone")) each.textContent = zone === "UTC" ? "times in UTC" : `times in ${zone}; UTC on hover`
    for (const each of root.querySelectorAll("g[data-at]")) each.firstElementChild.textContent = said(each)
    for (const each of root.querySelectorAll(".buttons")) each.hidden = false
  }
  const said = each => `${shown(new Date(each.dataset.at * 1000), "day")}: ${each.dataset.say}`

  // -- refreshing part by part --

  const parts = root => new Map([...root.children].map(each => [each.id, each]))
  const inner = each => each.id === "calls" ? each.querySelector("#list") : each

  // swap puts what has changed in place; what the reader sees, opened, focused or typed stays
  function swap(fresh) {
    const old = parts(main), next = parts(fresh), selection = getSelection()
    const kept = scrollY ? [...main.querySelectorAll("main > [id], details.target, details.call")].filter(each => each.getBoundingClientRect().bottom > 0)
      .sort((a, b) => Math.abs(a.getBoundingClientRect().top) - Math.abs(b.getBoundingClientRect().top))[0]?.id : ""
    const top = kept ? document.getElementById(kept).getBoundingClientRect().top : 0
    const focus = document.activeElement, place = focus?.closest("details[id], [id]")?.id
    const index = place ? [...document.getElementById(place).querySelectorAll("a, button, summary")].indexOf(focus) : -1
    if ([...old.keys()].join() !== [...next.keys()].join()) {
      for (const [id, each] of next) {
        raw.set(id, inner(each).outerHTML)
        carry(old.get(id), each)
        localize(each)
      }
      main.replaceChildren(...[...next.values()].map(each => document.adoptNode(each)))
    } else for (const [id, each] of next) {
      const text = inner(each).outerHTML, mine = inner(old.get(id)), theirs = inner(each)
      if (raw.get(id) === text || armed && mine.contains(armed) || !selection.isCollapsed && selection.containsNode(mine, true)) continue
      raw.set(id, text)
      carry(mine, theirs)
      localize(theirs)
      mine.replaceWith(document.adoptNode(theirs))
    }
    document.title = fresh.dataset.title
    const anchor = kept && document.getElementById(kept)
    if (anchor) scrollBy({top: anchor.getBoundingClientRect().top - top, behavior: "instant"})
    if (place && !focus.isConnected) [...document.getElementById(place)?.querySelectorAll("a, button, summary") ?? []][index]?.focus({preventScroll: true})
  }

  // carry keeps open what was open, also a call that is no longer listed
  function carry(mine, theirs) {
    if (mine?.matches("details[open]")) theirs.open = true
    for (const each of mine?.querySelectorAll("details[open]") ?? []) {
      const same = [...theirs.querySelectorAll("details")].find(other => other.id === each.id)
      if (same) same.open = true
      else if (each.matches(".call") && theirs.querySelector(".rows")) theirs.querySelector(".rows").append(each.cloneNode(true))
    }
    const told = mine?.querySelectorAll(".buttons [role=status]") ?? []
    for (const each of told) {
      const id = each.closest("details").id, same = [...theirs.querySelectorAll("details")].find(other => other.id === id)
      if (same && each.textContent) same.querySelector(".buttons [role=status]").textContent = each.textContent
    }
  }

  async function load() {
    if (busy) return
    clearTimeout(timer)
    if (document.hidden) return report("Paused")
    busy = true
    const began = performance.now(), where = location.search
    try {                                     // without the login: fetch refuses URLs with credentials
      const answer = await fetch(location.origin + location.pathname + where, {cache: "no-store", redirect: "error", headers: {Accept: "text/html"}, signal: AbortSignal.timeout(MAX_INTERVAL)})
      const text = await answer.text()
      if (answer.status === 401) throw new Error("401")
      const from = text.indexOf("<main data-title"), to = text.lastIndexOf("</main>")
      if (!answer.ok || from < 0 || to < from) throw new Error(answer.status)
      const fresh = new DOMParser().parseFromString(text.slice(from, to + 7), "text/html").querySelector("main")
      if (where === location.search) {        // else the reader has gone on meanwhile
        main.dataset.csrf = fresh.dataset.csrf
        swap(fresh)
        report(getSelection().isCollapsed ? "Live" : "Paused while text is selected")
      }
    } catch (error) {
      if (error.message === "401") report("The login has ended: reload this page to log in.", true)
      else report("The last refresh failed, so this page is out of date. Retrying.", true)
    }
    busy = false
    timer = setTimeout(load, where === location.search ? Math.min(MAX_INTERVAL, Math.max(INTERVAL, 10 * (performance.now() - began))) : 0)
  }

  // go shows another period, page or search, without leaving the page
  async function go(url) {
    history.pushState(null, "", url)
    if (location.hash) document.querySelector(location.hash)?.scrollIntoView()
    report("Loading")
    while (busy) await new Promise(done => setTimeout(done, 20))
    await load()
  }

  document.addEventListener("click", event => {
    const link = event.target.closest("a[data-swap]")
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return
    event.preventDefault()
    go(link.getAttribute("href"))
  })
  document.addEventListener("submit", event => {
    if (event.target.id !== "filter") return
    event.preventDefault()
    const wanted = [...new FormData(event.target)].filter(([, value]) => value)
    const error = new URLSearchParams(location.search).get("error")
    if (error) wanted.push(["error", error])
    go("?" + new URLSearchParams(wanted))
  })
  document.addEventListener("change", event => {
    if (event.target.matches("#filter select")) event.target.form.requestSubmit()
  })
  addEventListener("popstate", () => {
    const given = new URLSearchParams(location.search)
    for (const each of document.querySelectorAll("#filter [name]")) each.value = given.get(each.name) ?? ""
    load()
  })

  // -- charts: what a bar says, by mouse or finger --

  const point = event => {
    const bar = event.target.closest?.("g[data-at]"), output = event.target.closest?.("figure")?.querySelector("output")
    for (const each of document.querySelectorAll("figure g.on")) each.classList.remove("on")
    for (const each of document.querySelectorAll("figure output")) if (each !== output) each.textContent = ""
    if (!bar || !output) return
    bar.classList.add("on")
    output.textContent = said(bar)
  }
  document.addEventListener("pointerover", point)
  document.addEventListener("pointerdown", point)

  // -- circuits --

  const disarm = () => {
    if (!armed) return
    armed.classList.remove("armed")
    armed.textContent = armed.dataset.said
    clearTimeout(armed.timer)
    armed = null
  }

  async function act(button) {
    if (button.dataset.sure && armed !== button) {
      disarm()
      armed = button
      button.dataset.said = button.textContent
      button.textContent = button.dataset.sure
      button.classList.add("armed")
      button.timer = setTimeout(disarm, SURE)
      return
    }
    disarm()
    const row = button.closest(".buttons"), id = row.closest("details").id, [provider, model] = JSON.parse(row.dataset.target)
    const say = text => [...document.querySelectorAll("details.target")].find(each => each.id === id)?.querySelector("[role=status]").replaceChildren(text)
    row.querySelectorAll("button").forEach(each => each.disabled = true)
    try {
      const answer = await fetch(`${base}providers/${encodeURIComponent(provider)}/circuit/${button.dataset.act}`, {
        method: "POST", redirect: "error", signal: AbortSignal.timeout(MAX_INTERVAL),
        headers: {"Content-Type": "application/json", "X-Infermux-Csrf": main.dataset.csrf},
        body: JSON.stringify({model}),
      })
      const told = await answer.json()
      say(answer.ok ? `Done in ${told.done} of ${told.workers} ${told.workers === 1 ? "worker" : "workers"}.` : told.error.message)
    } catch {
      say("The service did not answer: nothing may have changed.")
    }
    row.querySelectorAll("button").forEach(each => each.disabled = false)
    load()
  }

  document.addEventListener("click", event => {
    const button = event.target.closest("button[data-act]")
    if (button) act(button)
    else disarm()
  })

  const logout = document.getElementById("logout")
  if (logout) {
    logout.hidden = false
    logout.addEventListener("click", async () => {
      await fetch(base + "status/logout", {method: "POST", headers: {"X-Infermux-Csrf": main.dataset.csrf}})
      location.assign(base + "status/login")
    })
  }

  for (const [id, each] of parts(main)) raw.set(id, inner(each).outerHTML)
  localize(document)
  document.addEventListener("visibilitychange", load)
  timer = setTimeout(load, INTERVAL)
  report("Live")
})()
