// A volume in three views that move together: scan, labels, prediction. Drawn by niivue.
"use strict";

(() => {
  const AXES = ["z", "y", "x"];
  const TRIES = 30;
  const CUTS = 4;
  const root = document.getElementById("volume");
  if (!root) return;
  const part = (id) => document.getElementById(id);
  const say = (text) => { part("says").textContent = text; part("says").hidden = !text; };
  const wait = (seconds) => new Promise((go) => setTimeout(go, seconds * 1000));

  const sentence = (said) => said?.trim().slice(0, 500).replace(/[^.!?]$/, "$&.");
  const type = (answer) => answer.headers.get("Content-Type") || "";
  // A login that is over, or a proxy's maintenance: nothing that is loaded here is HTML.
  const another = (answer) => answer.ok && type(answer).startsWith("text/html");

  // Why there is none: of a proxy's page of HTML no more than its status.
  async function refusal(answer) {
    if (another(answer)) return "another page answers in its place.";
    const said = type(answer).startsWith("application/json") ? (await answer.json()).error
      : type(answer).startsWith("text/plain") ? await answer.text() : null;
    return sentence(said) || `this backend answers ${answer.status}.`;
  }

  // The answer and what `read` reads of it. A server that is busy, a proxy that gave up, or a line that was cut is
  // asked again a moment later.
  async function load(url, read) {
    for (let tried = 1; ; tried++) {
      let again = tried < CUTS, later = null, why = "this backend does not answer, or not to the end.";
      try {
        const answer = await fetch(url);
        if (answer.ok && !another(answer)) return { answer, content: await answer[read]() };
        later = answer.headers.get("Retry-After");
        again = tried < TRIES && (later !== null || [502, 504].includes(answer.status));
        why = await refusal(answer);
      } catch (error) {
        if (!(error instanceof TypeError)) throw error; // no answer, or half of one, is a TypeError
      }
      if (!again) throw new Error(why);
      await wait(Number(later) || 3);
    }
  }

  // -- where the crosshair is, as [z, y, x] of the volume's file

  let about, at, chosen, views = [];

  const axis = () => AXES.indexOf(about.axis);

  // The task to open: that of this slice, or of one that stands for the same voxel, else the nearest.
  function nearest() {
    const wanted = at[axis()];
    return about.slices.reduce((best, one) => Math.abs(one.at - wanted) < Math.abs(best.at - wanted) ? one : best);
  }

  // What people call the slice at a place: a volume that was turned over on import counts from its other end.
  function number(place) {
    const ends = new Set(about.slices.map((one) => one.at + one.z));
    return about.slices.length > 1 && ends.size === 1 ? [...ends][0] - place : place;
  }

  function tell() {
    AXES.forEach((name, i) => {
      const slider = part(`at-${name}`);
      if (Number(slider.value) !== at[i]) slider.value = at[i];
      const says = i === axis() ? number(at[i]) : at[i];
      part(`is-${name}`).textContent = says;
      slider.setAttribute("aria-valuetext", says);
    });
    chosen = nearest();
    part("open").href = chosen.label_studio;
    part("open").textContent = `Open slice ${chosen.z} in Label Studio`;
    const masks = about.unanswered ? ["whether it is labelled or predicted is not known"]
      : [chosen.labelled ? "labelled" : "not labelled", chosen.predicted ? "predicted" : "not predicted"];
    if (chosen.at !== at[axis()]) masks.unshift("the nearest one that is a task");
    part("state").textContent = `${about.axis} = ${chosen.z}: ${masks.join(", ")}.`;
    if (!part("without").hidden) picture();
  }

  // In place of the views. The one before is not seen under the words of this one while this one loads.
  function picture() {
    const src = root.dataset.picture.replace("/0.png", `/${chosen.task}.png`);
    if (part("picture").getAttribute("src") === src) return;
    part("picture").removeAttribute("src");
    part("picture").src = src;
    part("picture").alt = `Slice ${chosen.z} with the published mask`;
  }

  // niivue's fractions run towards right, anterior, superior; permRAS says which axis of the file each is.
  function toFractions(place) {
    const along = [...about.shown].map((length, i) => (Math.floor(place[i] / about.steps[i]) + 0.5) / length).reverse();
    return views[0].volumes[0].permRAS.map((one) => one < 0 ? 1 - along[-one - 1] : along[one - 1]);
  }

  function fromFractions(fractions) {
    const along = [0, 0, 0];
    views[0].volumes[0].permRAS.forEach((one, i) => { along[Math.abs(one) - 1] = one < 0 ? 1 - fractions[i] : fractions[i]; });
    return along.reverse().map((value, i) => {
      const shown = Math.min(about.shown[i] - 1, Math.max(0, Math.floor(value * about.shown[i])));
      const step = about.steps[i];
      // Of those that one voxel stands for: the one that is there already, else the middle.
      if (Math.floor(at[i] / step) === shown) return at[i];
      return Math.min(about.shape[i] - 1, shown * step + Math.floor(step / 2));
    });
  }

  // Drawn once a frame, however often they are moved in it.
  const stale = new Set();

  function draw(view) {
    if (!stale.size) {
      requestAnimationFrame(() => {
        const waiting = [...stale];
        stale.clear();
        waiting.forEach((one) => one.drawScene());
      });
    }
    stale.add(view);
  }

  function move(place, but = null) {
    at = place;
    for (const view of views.filter((one) => one !== but)) {
      view.scene.crosshairPos = toFractions(at);
      draw(view);
    }
    tell();
  }

  function turn(azimuth, elevation, but) {
    for (const { scene } of views.filter((one) => one !== but)) {
      if (scene.renderAzimuth !== azimuth) scene.renderAzimuth = azimuth;
      if (scene.renderElevation !== elevation) scene.renderElevation = elevation;
    }
    views.filter((one) => one !== but).forEach(draw);
  }

  function begin() {
    at = about.shape.map((length) => Math.floor(length / 2));
    const best = about.slices.filter((one) => one.labelled)[0] || about.slices.filter((one) => one.predicted)[0];
    at[axis()] = best ? best.at : nearest().at;
    AXES.forEach((name, i) => part(`at-${name}`).addEventListener("input", (event) => {
      move(at.map((value, j) => i === j ? Number(event.target.value) : value));
    }));
    tell();
    root.querySelector(".sliders").hidden = false;
    part("slice").hidden = false;
  }

  // -- the views

  const hasWebGL = () => {
    try { return Boolean(document.createElement("canvas").getContext("webgl2")); } catch { return false; }
  };

  // A colour for each class; the background has none.
  function colours() {
    const rgb = [0, ...about.colours.map((one) => parseInt(one.slice(1), 16))];
    return {
      R: rgb.map((one) => one >> 16), G: rgb.map((one) => (one >> 8) & 255), B: rgb.map((one) => one & 255),
      A: rgb.map((one, i) => i ? 255 : 0), I: rgb.map((one, i) => i), labels: about.classes,
    };
  }

  async function view(kind, scan, mask) {
    const canvas = part(`view-${kind}`);
    canvas.hidden = false;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${kind} along three axes and in 3-D`);
    const drawn = new niivue.Niivue({
      dragAndDropEnabled: false, isNearestInterpolation: true, isOrientationTextVisible: about.placed,
      isCornerOrientationText: true, sagittalNoseLeft: !about.placed, multiplanarShowRender: 1,
      multiplanarLayout: 2, multiplanarForceRender: true, crosshairColor: [1, 1, 1, 0.6], crosshairWidth: 0.5,
      backColor: [0, 0, 0, 1], show3Dcrosshair: true, loadingText: "", logLevel: "error", tileMargin: 2,
    });
    await drawn.attachToCanvas(canvas);
    await drawn.loadFromArrayBuffer(scan.slice(0), "scan.nii.gz");
    const base = drawn.volumes[0];
    base.cal_min = 0;
    base.cal_max = 255;
    if (mask) {
      await drawn.loadFromArrayBuffer(mask, "mask.nii.gz");
      const painted = drawn.volumes[1];
      // What nobody labelled, 255, is drawn as the background: not at all.
      painted.img.forEach((value, i) => { if (value === 255) painted.img[i] = 0; });
      painted.hdr.intent_code = 1002; // NIfTI's word for labels: each value has its colour, none between
      painted.setColormapLabel(colours());
      drawn.setOpacity(1, 0.6);
    }
    drawn.updateGLVolume();
    drawn.setSliceType(drawn.sliceTypeMultiplanar);
    return drawn;
  }

  // One of them beside those that are there. What is lacking in it, or null.
  async function add(kind, scan) {
    let mask = null, left = 0;
    if (kind !== "scan") {
      say(`Loading ${kind} …`);
      const { answer, content } = await load(about.files[kind], "arrayBuffer");
      mask = content;
      left = Number(answer.headers.get("X-Nextslice-Left-Out"));
    }
    const drawn = await view(kind, scan, mask);
    views.push(drawn);
    move(at);
    drawn.onLocationChange = (place) => move(fromFractions(place.frac), drawn);
    drawn.onAzimuthElevationChange = (azimuth, elevation) => {
      if (turning) return;
      turning = true;
      try { turn(azimuth, elevation, drawn); } finally { turning = false; }
    };
    return left ? `${left === 1 ? "The mask of 1 slice" : `The masks of ${left} slices`} cannot be read: left out of ${kind}.` : null;
  }

  async function show(notes) {
    if (!window.niivue) throw new Error("the script that draws it has not come.");
    say("Loading the scan …");
    const { content: scan } = await load(about.files.scan, "arrayBuffer");
    await add("scan", scan);
    for (const kind of ["labels", "prediction"].filter((one) => about.files[one])) {
      try {
        notes.push(await add(kind, scan));
      } catch (error) { // the scan, and the other mask, are to be seen without it
        part(`view-${kind}`).remove();
        notes.push(`The ${kind} cannot be shown: ${sentence(error.message)} Load the page again.`);
      }
    }
    part("keys").hidden = false;
    say(notes.filter(Boolean).join(" "));
    root.dataset.ready = "";
  }

  let turning = false;

  (async () => {
    try {
      ({ content: about } = await load(root.dataset.about, "json"));
      begin();
      const notes = [about.unanswered && `Label Studio did not tell what is labelled: ${sentence(about.unanswered)} Load the page again.`];
      if (!hasWebGL()) {
        part("without").hidden = false;
        tell();
        root.querySelector(".views").hidden = true;
        AXES.filter((name) => name !== about.axis).forEach((name) => { part(`at-${name}`).parentElement.hidden = true; });
        notes.push("This browser has no WebGL 2, so there is no 3-D. Below is the slice with its published mask; the slider chooses another one.");
        say(notes.filter(Boolean).join(" "));
        root.dataset.ready = "";
        return;
      }
      await show(notes);
    } catch (error) {
      say(`The volume cannot be shown: ${sentence(error.message)} Load the page again.`);
    }
  })();
})();
