// A JavaScript server: fetch events, as in browsers' service workers and on edge platforms.
addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  const url = new URL(request.url);
  switch (url.pathname) {
    case "/":
      return new Response("hello from JavaScript\n");
    case "/echo":
      return new Response((await request.text()).toUpperCase(), { headers: { "x-method": request.method } });
    default:
      return new Response("not found\n", { status: 404 });
  }
}
